"""One dense object detector whose configs are RetinaNet, FCOS and ATSS.

Runs with torch, torchvision, numpy, pillow and pycocotools alone: no Ray, no SQL, no MLflow.
"""
