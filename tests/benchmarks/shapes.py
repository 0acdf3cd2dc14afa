"""What is stepped: the shapes of three models, and tensors of these shapes whose gradients are the same before every step."""

import math

import torch


def transformer(layers, width, vocabulary, context):
    """The shapes of a GPT-2: 12 tensors a layer, and four more."""
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *block * layers, (width,), (width,)]


def resnet(blocks):
    """The shapes of a ResNet with bottleneck blocks: convolutions without bias, and a scale and a shift after each."""
    convolutions, channels = [(64, 3, 7, 7)], 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            convolutions += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [] if block else [(4 * width, channels, 1, 1)]
            channels = 4 * width
    normalised = [shape for convolution in convolutions for shape in (convolution, convolution[:1], convolution[:1])]
    return [*normalised, (1000, channels), (1000,)]


MODELS = {"tiny": transformer(4, 64, 64, 32), "resnet50": resnet([3, 4, 6, 3]), "gpt2": transformer(12, 768, 50257, 1024)}


class Stage:
    """Parameters that all contestants step: what counts is the traffic, and that each finds what the others found."""

    def __init__(self, shapes, device="cpu"):
        self.params = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
        self.elements = sum(math.prod(shape) for shape in shapes)
        self.start = [p.detach().clone() for p in self.params]
        self._given = [torch.randn_like(p.detach()) for p in self.params]
        self._grads = [torch.empty_like(g) for g in self._given]

    def reset_gradients(self):
        """Undo what a step did to the gradients: clipping in place scales them, and HeavyBall takes them away."""
        for p, g, given in zip(self.params, self._grads, self._given, strict=True):
            p.grad = g.copy_(given)

    @torch.no_grad()
    def reset(self):
        """Parameters and gradients as at first."""
        for p, start in zip(self.params, self.start, strict=True):
            p.copy_(start)
        self.reset_gradients()
