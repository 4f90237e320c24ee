"""The crop stage: raw images to 256x256 crops.

The public face: ``run.run_crop`` and ``merge.merge_parts`` for folders; ``image.crop_image``,
``image.crop_pixels`` and ``decode.ImageError`` for single images.
"""
