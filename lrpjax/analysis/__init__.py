"""What else relevance tells than one heatmap: audits, concepts, interactions of two inputs, gradients, Taylor decomposition."""
