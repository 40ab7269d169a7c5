"""Knowledge distillation without federation: losses, soft labels, the teacher and domain adaptation."""
