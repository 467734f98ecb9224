"""Write larq.onnx and larq.npz: a network of larq's layers as tf2onnx exports it, and what TensorFlow answers.

    pip install larq tf2onnx tensorflow-cpu tf_keras && python tests/exported/make_larq.py

Made with larq 0.14.0, tf2onnx 1.17.0, TensorFlow 2.21.0. larq wants Keras 2, which TF_USE_LEGACY_KERAS gives it.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import larq
import numpy as np
import tensorflow as tf
import tf2onnx

HERE = Path(__file__).parent
SIZE = 12

tf.random.set_seed(0)
keras = tf.keras.layers
binary = {
    "input_quantizer": "ste_sign",
    "kernel_quantizer": "ste_sign",
    "kernel_constraint": "weight_clip",
    "use_bias": False,
}
network = tf.keras.models.Sequential(
    [
        keras.Conv2D(8, 3, padding="same", input_shape=(SIZE, SIZE, 3)),
        keras.BatchNormalization(),
        larq.layers.QuantConv2D(24, 3, padding="same", pad_values=1.0, strides=2, **binary),
        keras.BatchNormalization(),
        larq.layers.QuantConv2D(24, 3, padding="same", **binary),
        keras.MaxPool2D(2),
        keras.BatchNormalization(),
        larq.layers.QuantConv2D(33, 3, padding="valid", **binary),
        keras.BatchNormalization(),
        keras.Flatten(),
        larq.layers.QuantDense(20, **binary),
        keras.BatchNormalization(),
        keras.Dense(10),
    ]
)
for layer in network.layers:
    if isinstance(layer, keras.BatchNormalization):
        shape, rng = layer.get_weights()[0].shape, np.random.RandomState(1)
        gamma, beta = rng.uniform(-1.5, 1.5, shape), rng.normal(size=shape) * 0.3
        layer.set_weights([gamma, beta, rng.normal(size=shape) * 2, rng.uniform(5, 30, shape)])
signature = (tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="x"),)
tf2onnx.convert.from_keras(network, input_signature=signature, opset=17, output_path=str(HERE / "larq.onnx"))
x = np.random.RandomState(2).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
np.savez(HERE / "larq.npz", x=x, y=network(x).numpy())
