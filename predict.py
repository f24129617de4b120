"""What a saved student says about new pictures, or the student as one file for other programs.

    python predict.py RUN picture.jpg folder/            class and probabilities of each picture
    python predict.py RUN folder/ --csv predictions.csv  the same as a table
    python predict.py RUN --export                       writes RUN/student.pt2 and student.onnx

RUN is the folder of a finished run, runs/<data set>/<method>/<name>. Pictures are cut to a square
and made smaller as in training. The student is not told to which group a person belongs.
"""

import argparse
import csv
import importlib
import io
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from data import InputError, put_back, restore, save
from datasets import decode

METHODS = {path.stem: path for path in Path(__file__).resolve().parent.glob("methods/*.py")}


class Student(nn.Module):
    """The network with its normalisation: pictures (B, 3, H, W), 0 to 255, to logits (B, C)."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pictures):
        ## Always float32, and not by Network.forward: torch.export cannot write down its autocast.
        feats = self.network.body((pictures - self.mean) / self.std).flatten(1)  # (B, D)
        return self.network.head(feats)


def load_student(folder, rule="last"):
    """The student of a run, as its epoch by `rule` left it; its classes; its picture size."""
    path = Path(folder) / "student.pt"
    if not path.exists():
        example = next((f", such as {p.parent}" for p in Path(folder).rglob("student.pt")), "")
        raise InputError(f"{path} does not exist: name the folder of a finished run{example}")
    saved = restore(path)
    content = {"method", "settings", "classes", "mean", "std", "states"}
    if not isinstance(saved, dict) or content - saved.keys() or saved["method"] not in METHODS:
        raise InputError(f"{path} is not a student of a script in methods/")
    sys.path.insert(0, str(METHODS[saved["method"]].parent))
    script = importlib.import_module(saved["method"])
    ## After --pretrained, torchvision's weights are needed here, too: some networks are built in
    ## another way for them. The saved ones replace them.
    args = argparse.Namespace(**saved["settings"] | {"compile": False})
    network = script.Network(args, args.student, len(saved["classes"]))
    put_back(network, saved["states"][rule], path)
    return Student(network, saved["mean"], saved["std"]).eval(), saved["classes"], args.image_size


def pictures_in(path):
    """The picture at `path`, or all pictures in the folder `path`."""
    Image.init()  # fills Image.EXTENSION with all endings that Pillow knows
    inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in Image.EXTENSION]
    if path.is_dir() and not inside:
        raise InputError(f"{path} holds no picture")
    return inside or [path]


def export(student, size, folder):
    """Write the student as files that need none of this code and take any number of pictures."""
    pictures, any_number = torch.zeros(2, 3, size, size), {0: torch.export.Dim("batch", min=1)}
    student.to(memory_format=torch.contiguous_format)  # the order in which it can be written
    program = torch.export.export(student, (pictures,), dynamic_shapes=(any_number,))
    torch.export.save(program, content := io.BytesIO())
    save(folder / "student.pt2", content.getvalue())
    print(f"wrote {folder / 'student.pt2'}: torch.export.load(...).module() takes 0 to 255")
    if find_spec("onnx") and find_spec("onnxscript"):
        torch.onnx.export(program, (), folder / "student.onnx", dynamo=True)
        print(f"wrote {folder / 'student.onnx'}")
    else:
        print("no ONNX file: it needs the packages onnx and onnxscript")


@torch.no_grad()
def main():
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures, or folders of pictures")
    rules = ["last", "best_overall", "best_worst_group"]
    parser.add_argument("--rule", default="last", choices=rules, help="which epoch's student")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--export", action="store_true", help="write the student as one file")
    args = parser.parse_intermixed_args()  # flags may stand anywhere
    if not args.pictures and not args.export:
        parser.error("name pictures, or folders of pictures, or --export")
    student, classes, size = load_student(args.run, args.rule)
    if args.export:
        export(student, size, args.run)
    csv.writer(table := io.StringIO()).writerow(["picture", "class", *classes])
    for file in [file for path in args.pictures for file in pictures_in(path)]:
        try:
            pixels = torch.tensor(decode(file, size)).permute(2, 0, 1)  # (3, H, W)
        except Exception as why:  # decoders raise all kinds of errors
            raise InputError(f"{file} cannot be read as a picture ({why})") from None
        shares = student(pixels[None].float())[0].softmax(0).tolist()  # (C,)
        likely = classes[shares.index(max(shares))]
        csv.writer(table).writerow([file, likely, *shares])
        each = ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, shares))
        print(f"{file}: {likely} ({each})")
    if args.csv:
        save(args.csv, table.getvalue())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"predict.py: {error}")
