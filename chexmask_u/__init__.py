"""CheXmask-U: anatomical landmarks of chest radiographs with their uncertainty.

The public names stand in `__init__.pyi`; each is imported when it is first used, so that `import chexmask_u` costs
neither torch nor Ray.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
