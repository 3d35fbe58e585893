"""What a user of the other stack writes to turn an exported model into a `.pte`.

    python benchmarks/command_peer.py MODEL.pt2 IMAGES.npz OUT.pte

The job of ``pt2q quantize MODEL.pt2 --calibration IMAGES.npz -o OUT.pte``, but that nothing is
held out, compared, or said; it is run by `benchmarks/command.py`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def main() -> None:
    model, data, out = sys.argv[1:]
    torch.set_num_threads(1)
    exported = torch.export.load(model)
    images = torch.from_numpy(np.load(data)["x"]).split(1)
    quantizer = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True)
    )
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        for image in images:
            prepared(image)
    converted = convert_pt2e(prepared)
    program = torch.export.export(converted, (images[0],))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    Path(out).write_bytes(edge.to_executorch().buffer)


if __name__ == "__main__":
    main()
