"""The student in other runtimes than onnxruntime: conversion, INT8 quantization after training, inference."""
