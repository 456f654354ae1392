"""What is asked beyond one heatmap: audits, concepts, BiLRP, Taylor decomposition, and the gradient methods."""
