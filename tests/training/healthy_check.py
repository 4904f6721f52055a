"""What a sentinel sees of a run that goes well."""

from fastadv.training import Check

HEALTHY = Check(
    batch=1,
    clean=0.98,
    single_step=0.93,
    pgd=0.88,
    samples=1000,
    one_class=0.12,
    train_loss=0.3,
    craft_loss=0.1,
    classes=10,
    is_warm=True,
)
