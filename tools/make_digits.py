"""Writes edc_nb/assets/digits.npz from scikit-learn's copy of the UCI handwritten digits (CC BY 4.0)."""
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
out = Path(__file__).parent.parent / 'edc_nb' / 'assets' / 'digits.npz'
# ink is counted from 0 to 16 in the source; 8 bits keep every level apart
images = np.round(digits.images * 255 / 16).astype(np.uint8)
np.savez_compressed(out, images=images, labels=digits.target.astype(np.uint8))
print(out, out.stat().st_size, 'bytes')
