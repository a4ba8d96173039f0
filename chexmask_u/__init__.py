"""CheXmask-U: anatomical landmarks of chest radiographs with their uncertainty."""

from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS, REGIONS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.preparation import ReadImage
from chexmask_u.manifests.published import read_published
from chexmask_u.model.checkpoint import CheckpointError, load_model
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.predict import Prediction, predict
from chexmask_u.record import ReadError
from chexmask_u.steps.mask import organ_mask, rle_decode, rle_encode
from chexmask_u.steps.read import read_image
from chexmask_u.use.analysis import (
    draw_record,
    frame_landmarks,
    landmark_uncertainty,
    landmark_weights,
    record_masks,
    region_uncertainty,
    trusted_landmarks,
)
from chexmask_u.use.pairing import Pairs, pair_images
from chexmask_u.version import __version__

__all__ = [
    "FRAME",
    "LANDMARKS",
    "N_LANDMARKS",
    "ORGANS",
    "REGIONS",
    "CheckpointError",
    "HybridGNet",
    "Letterbox",
    "Pairs",
    "Prediction",
    "ReadError",
    "ReadImage",
    "__version__",
    "draw_record",
    "frame_landmarks",
    "landmark_uncertainty",
    "landmark_weights",
    "load_model",
    "organ_mask",
    "pair_images",
    "predict",
    "read_image",
    "read_published",
    "record_masks",
    "region_uncertainty",
    "rle_decode",
    "rle_encode",
    "trusted_landmarks",
]
