"""The run as TensorBoard shows it: scalars, settings and pictures."""

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clipcoco.disk import files
from clipcoco.events import Evaluated, Event, RunEnded, RunStarted, StepDone

if TYPE_CHECKING:
    from PIL import Image
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.compat.proto.summary_pb2 import Summary

METRICS = {  # of the HParams page
    "val/r1": "R@1 with all validation images as one gallery: the mean of both directions, in percent",
    "val/loss": "the training loss over the validation images, in nats",
    "train/loss": "mean of the log interval, in nats",
}


class TensorBoard:
    """Scalars, settings and pictures. Without torch's writer: its thread prints a traceback when the disk is full.

    Raises OSError for whatever goes wrong, a missing package or one of another version among it.

    `step` is that of the checkpoint a resumed run goes on from: readers then drop what an earlier file
    holds of later steps. `settings`, by dotted name, stand in the run itself and not in one of their own, as
    torch's add_hparams has it. The file is opened with the first record.
    """

    def __init__(self, folder: Path, step: int | None, settings: Mapping[str, object] | None = None) -> None:
        self.folder, self.step, self.settings = folder, step, settings or {}
        self._file: BinaryIO | None = None
        self._broken = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone | Evaluated):
            self._write(event.step, lambda: _scalars(event))
        elif isinstance(event, RunStarted) and self.settings and self.step is None:
            self._write(0, lambda: _hparams(self.settings))
        elif isinstance(event, RunEnded):
            self._write(event.step, lambda: _session_end(event))

    def pictures(self, step: int, pictures: "Mapping[str, tuple[str, Image.Image]]") -> None:
        """By tag ("retrievals/text_to_image/01"): a description and an RGB picture."""
        self._write(step, lambda: [_image(tag, *described) for tag, described in pictures.items()])

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _write(self, step: int, values: "Callable[[], list[Summary.Value]]") -> None:
        if self._broken:  # to import it again for each event would cost more than the step
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event as Record
            from tensorboard.compat.proto.event_pb2 import SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary

            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                # Readers take files in the order of their names: with microseconds a quick resume comes second.
                name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
                self._file = files.open_to_append(self.folder / name)
                _append(self._file, Record(wall_time=time.time(), file_version="brain.Event:2"))
                if self.step is not None:
                    start = SessionLog(status=SessionLog.START)
                    _append(self._file, Record(wall_time=time.time(), step=self.step + 1, session_log=start))
            _append(self._file, Record(wall_time=time.time(), step=step, summary=Summary(value=values())))
        except OSError:
            raise
        except Exception as error:  # TensorBoard and protobuf, which may be of any version, raise anything
            self._broken = True
            raise OSError(f"TensorBoard fails: {type(error).__name__}: {error}") from error


def _append(file: BinaryIO, record: "Record") -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(record.SerializeToString())
    files.write_whole(file, buffer.getvalue())


def _scalars(event: StepDone | Evaluated) -> "list[Summary.Value]":
    from tensorboard.compat.proto.summary_pb2 import Summary

    if isinstance(event, StepDone):
        names = ("loss", "lr", "temperature", "grad_norm")
        values = {f"train/{name}": getattr(event, name) for name in names}
        values |= {f"train/{name}": event.clock[name] for name in ("images_per_second", "data_wait")}
    else:
        values = {"val/loss": event.val_loss, "val/r1": event.r1}
        values |= {f"val/i2t/{key}": value for key, value in event.i2t.items()}
        values |= {f"val/t2i/{key}": value for key, value in event.t2i.items()}
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]


def _image(tag: str, description: str, picture: "Image.Image") -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    picture.save(png := io.BytesIO(), "PNG")
    width, height = picture.size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png.getvalue())
    return Summary.Value(tag=tag, metadata=SummaryMetadata(summary_description=description), image=image)


def _hparams(settings: Mapping[str, object]) -> "list[Summary.Value]":
    """What the HParams page needs: which settings and metrics there are, then this run's values."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    infos, start = [], plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        if isinstance(value, bool):
            kind, start.hparams[name].bool_value = api_pb2.DATA_TYPE_BOOL, value
        elif isinstance(value, int | float):
            kind, start.hparams[name].number_value = api_pb2.DATA_TYPE_FLOAT64, value
        else:
            kind, start.hparams[name].string_value = api_pb2.DATA_TYPE_STRING, str(value)
        infos.append(api_pb2.HParamInfo(name=name, type=kind))
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), description=text) for tag, text in METRICS.items()]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    return [_of_plugin("experiment", experiment=experiment), _of_plugin("session_start_info", session_start_info=start)]


def _session_end(event: RunEnded) -> "list[Summary.Value]":
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if event.state == "finished" else api_pb2.STATUS_UNKNOWN
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return [_of_plugin("session_end_info", session_end_info=end)]


def _of_plugin(tag: str, **data: object) -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**data))
    return Summary.Value(tag=f"_hparams_/{tag}", metadata=about, tensor=metadata.NULL_TENSOR)
