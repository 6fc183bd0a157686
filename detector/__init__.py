"""One dense object detector whose configs are RetinaNet, FCOS and ATSS.

Trains and detects with torch, torchvision, numpy and pillow alone; scoring takes pycocotools, and hotcoco for
quick numbers during training. No Ray, no SQL, no MLflow.
"""
