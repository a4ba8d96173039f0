"""CheXmask-U: anatomical landmarks of chest radiographs with their uncertainty."""

from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.letterbox import Letterbox
from chexmask_u.mask import organ_mask, rle_decode, rle_encode
from chexmask_u.model.checkpoint import CheckpointError, load_model
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.predict import Prediction, predict
from chexmask_u.read import ReadImage, read_image
from chexmask_u.record import ReadError
from chexmask_u.version import __version__

__all__ = [
    "FRAME",
    "LANDMARKS",
    "N_LANDMARKS",
    "ORGANS",
    "CheckpointError",
    "HybridGNet",
    "Letterbox",
    "Prediction",
    "ReadError",
    "ReadImage",
    "__version__",
    "load_model",
    "organ_mask",
    "predict",
    "read_image",
    "rle_decode",
    "rle_encode",
]
