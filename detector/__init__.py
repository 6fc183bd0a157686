"""One dense object detector whose configs are RetinaNet, FCOS and ATSS.

Trains and detects with torch, torchvision, numpy and pillow alone; evaluation needs pycocotools,
and hotcoco for fast evaluation during training. Uses no Ray, SQL or MLflow.
"""
