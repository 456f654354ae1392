"""Pixel-wise decomposition of bag-of-words classifiers with kernel SVMs (Bach et al. 2015, their first half).

bag = Bag(vocabulary(descriptors, 300), Soft(beta=5.0), (Patches(4),))
svc = SVC(kernel=Gram(chi2())).fit(histogram(bag, images), labels)
model = make_model(bag, from_svc(svc, histograms=histogram(bag, images)))
result = decompose(model, test_images)  # .words, .features, .pixels, .score, .remainder
"""

# Local features and words
# Relevance of words
# Models, and relevance of local features and pixels
from lrpjax.bow.decompose import Bag as Bag
from lrpjax.bow.decompose import BowModel as BowModel
from lrpjax.bow.decompose import Decomposition as Decomposition
from lrpjax.bow.decompose import decompose as decompose
from lrpjax.bow.decompose import feature_relevance as feature_relevance
from lrpjax.bow.decompose import histogram as histogram
from lrpjax.bow.decompose import make_model as make_model
from lrpjax.bow.decompose import mapping_relevance as mapping_relevance
from lrpjax.bow.decompose import pixel_relevance as pixel_relevance
from lrpjax.bow.features import Hard as Hard
from lrpjax.bow.features import LocalFeatures as LocalFeatures
from lrpjax.bow.features import Mapping as Mapping
from lrpjax.bow.features import Patches as Patches
from lrpjax.bow.features import Rank as Rank
from lrpjax.bow.features import Soft as Soft
from lrpjax.bow.features import local_features as local_features
from lrpjax.bow.features import map_to_words as map_to_words
from lrpjax.bow.features import pool as pool
from lrpjax.bow.features import pooling_shares as pooling_shares
from lrpjax.bow.features import supports_from_boxes as supports_from_boxes
from lrpjax.bow.features import supports_from_masks as supports_from_masks
from lrpjax.bow.features import vocabulary as vocabulary

# Kernels
from lrpjax.bow.kernels import Gram as Gram
from lrpjax.bow.kernels import Kernel as Kernel
from lrpjax.bow.kernels import chi2 as chi2
from lrpjax.bow.kernels import chi2_rbf as chi2_rbf
from lrpjax.bow.kernels import differentiable as differentiable
from lrpjax.bow.kernels import gram as gram
from lrpjax.bow.kernels import intersection as intersection
from lrpjax.bow.kernels import linear as linear
from lrpjax.bow.kernels import rbf as rbf
from lrpjax.bow.kernels import sum_decomposable as sum_decomposable

# The score as a function that lrpjax.relevance explains
from lrpjax.bow.score import score as score

# Support vector machines
from lrpjax.bow.svm import SVM as SVM
from lrpjax.bow.svm import decision as decision
from lrpjax.bow.svm import from_svc as from_svc
from lrpjax.bow.svm import make_svm as make_svm
from lrpjax.bow.words import WordRelevance as WordRelevance
from lrpjax.bow.words import find_roots as find_roots
from lrpjax.bow.words import word_relevance as word_relevance
