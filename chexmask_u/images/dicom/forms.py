"""The transfer syntaxes that are read, and what decodes each."""

from __future__ import annotations

from pydicom import uid

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
BASELINE = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)

# Which of pydicom's plugins decodes what, so that other packages that happen to be installed change no pixel.
PLUGINS: dict[uid.UID, str] = {
    # Slower than pylibjpeg-rle, whose panics on damaged data are no Exception.
    uid.RLELossless: "pydicom",
    **dict.fromkeys(BASELINE, "pillow"),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    # Not GDCM, which ends the process on damaged JPEG-LS.
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
}

# Forms whose values may hold other things, such as an overlay, above the bits stored.
UNUSED_BITS = (*NATIVE, *BASELINE, uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1)
