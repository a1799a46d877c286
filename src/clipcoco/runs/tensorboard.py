"""The run as TensorBoard shows it: scalars, settings and pictures."""

import io
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from clipcoco.disk import files
from clipcoco.events import Evaluated, Event, RunEnded, RunStarted, StepDone

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

METRICS = {  # of the HParams page
    "val/r1": "R@1 with all validation images as one gallery: the mean of both directions, in percent",
    "val/loss": "the training loss over the validation images, in nats",
    "train/loss": "mean of the log interval, in nats",
}


@dataclass(frozen=True)
class Picture:
    tag: str  # "retrievals/text_to_image/01"
    description: str
    png: bytes
    width: int
    height: int


class TensorBoard:
    """Scalars, settings and pictures, written without torch's writer, whose import costs 2 seconds more.

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
        self._safely(lambda: self._record(event))

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        self._safely(lambda: self._write(step, _image_values(pictures)))

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _safely(self, write: Callable[[], None]) -> None:
        if self._broken:  # to import it again for each event would cost more than the step
            return
        try:
            write()
        except OSError:
            raise
        except Exception as error:  # TensorBoard and protobuf, which may be of any version, raise anything
            self._broken = True
            raise OSError(f"TensorBoard fails: {type(error).__name__}: {error}") from error

    def _record(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._scalars(event.step, _step_scalars(event))
        elif isinstance(event, Evaluated):
            self._scalars(event.step, _evaluation_scalars(event))
        elif isinstance(event, RunStarted) and self.settings and self.step is None:
            self._write(0, _hparams(self.settings))
        elif isinstance(event, RunEnded):
            self._write(event.step, [_session_end(finished=event.state == "finished")])

    def _scalars(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])

    def _write(self, step: int, values: "Sequence[Summary.Value]") -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._file is None:
            self._file = self._open()
            self._append(Record(wall_time=time.time(), file_version="brain.Event:2"))
            if self.step is not None:
                start = SessionLog(status=SessionLog.START)
                self._append(Record(wall_time=time.time(), step=self.step + 1, session_log=start))
        self._append(Record(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _open(self) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Readers take files in the order of their names: with microseconds a quick resume comes second.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        return open(self.folder / name, "xb", buffering=0)

    def _append(self, record: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        RecordWriter(buffer).write(record.SerializeToString())
        assert self._file
        files.write_whole(self._file, buffer.getvalue())


def _image_values(pictures: Sequence[Picture]) -> "list[Summary.Value]":
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    return [
        Summary.Value(
            tag=picture.tag,
            metadata=SummaryMetadata(summary_description=picture.description),
            image=Summary.Image(
                width=picture.width, height=picture.height, colorspace=3, encoded_image_string=picture.png
            ),
        )
        for picture in pictures
    ]


def _hparams(settings: Mapping[str, object]) -> "list[Summary.Value]":
    """What the HParams page needs: which settings and metrics there are, then this run's values."""
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    infos, start = [], plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        if isinstance(value, bool):
            kind, proto = api_pb2.DATA_TYPE_BOOL, Value(bool_value=value)
        elif isinstance(value, int | float):
            kind, proto = api_pb2.DATA_TYPE_FLOAT64, Value(number_value=value)
        else:
            kind, proto = api_pb2.DATA_TYPE_STRING, Value(string_value=str(value))
        infos.append(api_pb2.HParamInfo(name=name, type=kind))
        start.hparams[name].CopyFrom(proto)
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), description=text) for tag, text in METRICS.items()]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    return [
        _plugin_value("_hparams_/experiment", plugin_data_pb2.HParamsPluginData(experiment=experiment)),
        _plugin_value("_hparams_/session_start_info", plugin_data_pb2.HParamsPluginData(session_start_info=start)),
    ]


def _session_end(finished: bool) -> "Summary.Value":
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_UNKNOWN, end_time_secs=time.time()
    )
    return _plugin_value("_hparams_/session_end_info", plugin_data_pb2.HParamsPluginData(session_end_info=end))


def _plugin_value(tag: str, data: "HParamsPluginData") -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)


def _step_scalars(event: StepDone) -> dict[str, float]:
    return {
        "train/loss": event.loss,
        "train/lr": event.lr,
        "train/temperature": event.temperature,
        "train/grad_norm": event.grad_norm,
        "train/images_per_second": event.clock["images_per_second"],
        "train/data_wait": event.clock["data_wait"],
    }


def _evaluation_scalars(event: Evaluated) -> dict[str, float]:
    recalls = {
        f"val/{direction}/{key}": value
        for direction, row in (("i2t", event.i2t), ("t2i", event.t2i))
        for key, value in row.items()
    }
    return {"val/loss": event.val_loss, "val/r1": event.r1, **recalls}
