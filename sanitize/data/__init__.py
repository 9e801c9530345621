"""Images in: every form of data becomes one `ImageSet`; batches and views are made on the device."""

from sanitize.data.batches import DeviceImages, batches
from sanitize.data.images import ImageSet
from sanitize.data.sources import load_images
from sanitize.data.triggers import PatchTrigger, Trigger
from sanitize.data.views import SSLViews

__all__ = ["DeviceImages", "ImageSet", "PatchTrigger", "SSLViews", "Trigger", "batches", "load_images"]
