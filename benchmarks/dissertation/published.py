"""The dissertation's own numbers (Kim, DGIST 2021), beside which ours are printed. Accuracies in per cent, E in
points."""

from __future__ import annotations

TABLE_3_1 = {  # 3-layer CNN on SVHN, validation: penalty -> (target, overall)
    "base": (91.4, 90.6),
    1.3: (93.0, 90.1),
    1.6: (94.2, 89.9),
    2.0: (95.2, 89.7),
    5.0: (97.1, 88.3),
    10.0: (97.9, 87.2),
    20.0: (98.5, 83.0),
    30.0: (98.5, 81.2),
}
TABLE_3_2 = {  # network -> (share of active neurons, their number)
    "resnet18/cifar100": (0.0068, 8057),
    "resnet56/cifar100": (0.0046, 9968),
    "cnn3-bn/svhn": (0.0619, 2789),
    "densenet40/svhn": (0.0085, 18487),
    "densenet121/sun397": (0.0291, 346626),
    "googlenet/imagenet": (0.0067, 20949),
}
TABLE_3_3 = {  # 3-layer CNN on SVHN, base 76.26 / 88.99: method -> (target, overall)
    "retraining-1": (91.44, 89.50),
    "retraining-2": (85.90, 89.70),
    "retraining-3": (91.53, 89.51),
    "retraining-4": (89.73, 89.18),
    "retraining-5": (90.94, 89.68),
    "calibration": (97.19, 87.36),
    "theta": (91.97, 89.02),
    "retrain-1": (87.90, 90.68),
    "retrain-2": (91.74, 90.59),
}
TABLE_3_4 = {  # method -> (mean E, sd of E over checkpoints)
    "retraining-1": (3.01, 1.90),
    "retraining-2": (2.34, 1.72),
    "retraining-3": (3.86, 1.75),
    "retraining-4": (3.33, 1.30),
    "retraining-5": (2.47, 1.25),
    "calibration": (6.22, None),
    "theta": (1.64, None),
    "retrain-1": (0.62, 0.10),
    "retrain-2": (0.68, 0.11),
}
TABLE_3_5 = {  # SVHN: network -> method -> (target, overall)
    "resnet20": {
        "base": (91.9, 95.0),
        "retraining-1": (92.1, 95.0),
        "retraining-3": (93.0, 95.0),
        "retraining-5": (92.1, 95.1),
        "theta": (95.1, 95.0),
        "retrain-1": (93.0, 95.0),
        "retrain-2": (93.9, 95.0),
    },
    "densenet40": {
        "base": (95.0, 96.0),
        "retraining-1": (95.8, 94.4),
        "retraining-3": (96.3, 94.9),
        "retraining-5": (96.6, 95.0),
        "theta": (97.1, 96.0),
        "retrain-1": (96.6, 96.3),
        "retrain-2": (97.0, 96.1),
    },
}
TABLE_3_6 = {  # ResNet-18 on CIFAR-100: class -> (original, by count, by threshold), target accuracy
    "chimpanzee": (52.0, 59.0, 55.0),
    "crab": (51.0, 56.0, 56.0),
    "mushroom": (51.0, 56.0, 55.0),
}
TABLE_3_7 = {"lowest": 15.71, "median": 2.92, "highest": 0.17}  # points won by the target
TABLE_3_8 = {2: (6.53, 0.28), 4: (2.64, 0.34), 6: (1.70, 0.39), 8: (1.04, 0.38), 10: (0.38, 0.38)}  # c -> points won
TABLE_3_9 = {"J10": 8.60, "J100+R100+J10+R10+J10": 10.60, "J100+R100+J50+R50+J10+R10+J10": 11.40}
TABLE_3_10 = {  # DenseNet-121 on SUN-397: method -> target accuracy at c = 50, 100, 150
    "base": (31.12, 35.20, 37.79),
    "oversampling": (49.42, 50.80, 51.59),
    "retraining-1": (33.68, 37.00, 39.44),
    "retraining-3": (41.68, 44.58, 41.11),
    "retraining-5": (34.20, 40.84, 42.91),
    "theta": (50.08, 51.62, 51.48),
    "retrain-1": (37.48, 41.16, 44.16),
    "retrain-2": (42.28, 45.92, 48.32),
    "oversampling+retraining-1": (52.88, 52.22, 52.67),
    "oversampling+retraining-3": (53.44, 51.24, 52.76),
    "oversampling+retraining-5": (48.56, 50.02, 50.64),
    "oversampling+theta": (58.16, 56.42, 55.47),
    "oversampling+retrain-1": (50.52, 53.12, 54.91),
    "oversampling+retrain-2": (57.00, 58.42, 59.27),
}
TABLE_3_11 = {  # 3-layer CNN on SVHN, seconds
    "training": 2298.0,
    "retraining": 232.0,
    "join": 0.83,
    "synaptic retraining": 16.0,
    "training / 1k": 23.2,
    "synaptic retraining / 1k": 3.2,
}
TABLE_4_2 = {  # parameters in thousands: network -> (original, DA, WA); the rows of ResNet-20 and DenseNet-40 are exchanged in WA
    "cnn3": (89.6, 608, 1140),
    "resnet20": (272, 309, 2370),
    "densenet40": (1020, 1250, 10900),
}
TABLE_4_3 = {"cnn3": 35.2, "resnet20": 21.7, "densenet40": 86.9}  # AAN's parameters in thousands
TABLE_4_1 = {"cnn3": (1000, 96, 3), "resnet20": (300, 192, 3), "densenet40": (1600, 192, 3)}  # neurons, hidden, stages
TABLE_4_4 = {  # overall accuracy: network -> (original, DA, WA, AAN)
    "cnn3-bn/svhn": (88.99, 90.14, 90.88, 91.00),
    "resnet20/svhn": (95.00, 95.09, 94.4, 95.08),
    "densenet40/svhn": (96.00, 96.25, 94.53, 96.19),
    "resnet18/cifar100": (54.80, 54.90, 52.32, 54.92),
    "resnet56/cifar100": (66.10, 64.77, 65.05, 66.21),
    "googlenet/imagenet": (68.98, 68.80, 64.93, 69.03),
    "densenet121/sun397": (49.75, 50.06, 47.31, 50.36),
}
TABLE_4_6 = {  # seconds a 1,000 iterations: (original, DA, WA, AAN)
    "cnn3-bn/svhn": (23.2, 24.1, 34.2, 8.1),
    "resnet20/svhn": (133.6, 164.1, 181.2, 7.8),
    "densenet40/svhn": (254.4, 304.7, 324.9, 14.1),
}
