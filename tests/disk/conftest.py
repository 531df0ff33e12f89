from places import direct_image, image, loop_device, tiny_tmpfs

__all__ = ["direct_image", "image", "loop_device", "tiny_tmpfs"]
