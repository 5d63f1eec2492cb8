"""Co-DINO with 5 scales: ATSS and Faster R-CNN, quality focal loss, soft-NMS."""

from .co_common import co_dino
from .dino_5scale import model

co_dino(model)
