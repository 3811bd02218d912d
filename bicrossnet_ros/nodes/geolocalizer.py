"""The node `geolocalizer`: camera frames in, positions or reasons for none out.

A lifecycle node. Configuring loads model and gallery, activating subscribes. One thread works on
frames; images wait in a mailbox with a single slot, so that a slow computer skips frames and never
works on an old one. Topics, services and parameters: docs/ros_interface.md.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import traceback
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    Imu,
    NavSatFix,
    Range,
)
from std_srvs.srv import Trigger

from bicrossnet_ros.errors import BiCrossNetError
from bicrossnet_ros.nodes.health import Health
from bicrossnet_ros.nodes.logs import RosLogHandler
from bicrossnet_ros.nodes.mailbox import Mailbox
from bicrossnet_ros.nodes.parameters import NodeParameters, refusal
from bicrossnet_ros.nodes.pipeline import Pipeline
from bicrossnet_ros.nodes.publishers import (
    BEST_EFFORT,
    RELIABLE,
    EstimatePublisher,
    health_message,
    qos,
)
from bicrossnet_ros.nodes.spinning import spin_through_errors
from bicrossnet_ros.types import Reason

OK, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class Geolocalizer(LifecycleNode):  # type: ignore[misc]  # rclpy is not typed everywhere
    """See the module's description."""

    def __init__(self) -> None:
        super().__init__('geolocalizer')
        self._declared = NodeParameters(self)
        self._pipeline: Pipeline | None = None
        self._is_active = False
        self._health = Health(time.monotonic)
        self._mailbox: Mailbox[tuple[float, Any]] = Mailbox()
        self._worker: threading.Thread | None = None
        self._subscriptions_made: list[Any] = []

        self._outputs = EstimatePublisher(self)
        self._diagnostics = self.create_publisher(
            DiagnosticArray, '/diagnostics', qos(RELIABLE, 10)
        )

        # A gallery takes seconds to load: in a group of its own frames keep flowing meanwhile.
        slow = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, '~/relocalize', self._on_relocalize)
        self.create_service(Trigger, '~/reload_gallery', self._on_reload, callback_group=slow)
        self.create_timer(1.0, self._publish_health, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.add_on_set_parameters_callback(self._on_set_parameters)
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jump = self.get_clock().create_jump_callback(
            backwards, post_callback=self._on_time_jump
        )

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load model and gallery; stays unconfigured, with a message, when that fails."""
        try:
            settings, config = self._declared.read()
            self._pipeline = Pipeline(settings, config, self._now_s)
        except BiCrossNetError as error:
            self.get_logger().error(f'cannot configure: {error}')
            return FAILURE
        except Exception:  # rclpy would swallow it
            self.get_logger().error(f'cannot configure:\n{traceback.format_exc()}')
            return FAILURE
        gallery, encoder = self._pipeline.map.gallery, self._pipeline.encoder
        self.get_logger().info(
            f'configured: gallery {gallery.path} ({gallery.manifest.tile_count} tiles), '
            f'model {encoder.model_id[:12]} in {encoder.runtime}'
        )
        return OK

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start to work."""
        assert self._pipeline is not None
        super().on_activate(state)  # opens the lifecycle publishers
        self._mailbox = Mailbox()
        self._worker = threading.Thread(target=self._work, args=(self._mailbox,), daemon=True)
        self._worker.start()
        self._subscribe(self._pipeline)
        self._is_active = True
        return OK

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the frame in hand and fall silent."""
        self._stop()
        super().on_deactivate(state)
        return OK

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release model and gallery."""
        self._release()
        return OK

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As deactivate and cleanup."""
        self._stop()
        self._release()
        return OK

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, after what rclpy caught without a word."""
        self.get_logger().error('a change of state failed; the node is unconfigured')
        return self.on_shutdown(state)

    def _subscribe(self, pipeline: Pipeline) -> None:
        settings, sensors = pipeline.settings, pipeline.sensors
        reliability = RELIABLE if settings.image_reliability == 'reliable' else BEST_EFFORT

        def subscribe(kind: type, topic: str, callback: Any, depth: int = 10) -> None:
            # Best effort listens to reliable and to best-effort publishers alike.
            made = self.create_subscription(kind, topic, callback, qos(BEST_EFFORT, depth))
            self._subscriptions_made.append(made)

        if settings.image_transport == 'compressed':
            kind, topic = CompressedImage, 'image/compressed'
        else:
            kind, topic = Image, 'image'
        self._subscriptions_made.append(
            self.create_subscription(kind, topic, self._on_image, qos(reliability, 1))
        )
        subscribe(CameraInfo, 'camera_info', sensors.add_camera_info)
        if settings.attitude_source != 'none':
            subscribe(Imu, 'imu', sensors.add_imu, depth=100)
        if settings.height_source == 'range':
            subscribe(Range, 'range', sensors.add_range)
        if 'odom' in (settings.height_source, settings.prior_source):
            subscribe(Odometry, 'odom', sensors.add_odometry, depth=50)
        if settings.prior_source == 'gps':
            subscribe(NavSatFix, 'gps/fix', sensors.add_gps)

    def _stop(self) -> None:
        self._is_active = False
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made.clear()
        self._mailbox.close()
        if self._worker is not None:
            self._worker.join()
            self._worker = None

    def _release(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def stop(self) -> None:
        """End the work in every state, before the node is destroyed."""
        self._stop()
        self._release()

    # Frames

    def _on_image(self, message: Any) -> None:
        replaced = self._mailbox.put((time.monotonic(), message))
        self._health.count_image(replaced=replaced)

    def _work(self, mailbox: Mailbox[tuple[float, Any]]) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        while (item := mailbox.take()) is not None:
            try:
                self._work_on(pipeline, *item)
            except Exception as error:  # this thread is the node's life: it must not end
                self._health.count_error(error)
                # Signals end the context before the executor; then nothing can be published.
                if self.context.ok():
                    self.get_logger().error(f'a frame was lost:\n{traceback.format_exc()}')

    def _work_on(self, pipeline: Pipeline, arrived_s: float, message: Any) -> None:
        estimate, where, trace = pipeline.process(message)
        if trace:
            self.get_logger().error(trace)
        elif estimate.reason in (Reason.BAD_INPUT, Reason.STALE):
            self.get_logger().warning(f'no fix: {estimate.detail}', throttle_duration_sec=5.0)
        latency_ms = 1e3 * (time.monotonic() - arrived_s)
        self._health.count_estimate(estimate, latency_ms=latency_ms, is_internal_error=bool(trace))
        self._outputs.publish(pipeline, where, estimate, message.header, latency_ms)

    # Services, parameters, time, health

    def _on_relocalize(self, _: Any, response: Any) -> Any:
        if self._pipeline is None:
            response.success, response.message = False, 'the node is not configured'
            return response
        self._pipeline.sensors.forget_position()
        response.success = True
        response.message = 'the next frame is searched for in the whole gallery'
        return response

    def _on_reload(self, _: Any, response: Any) -> Any:
        pipeline = self._pipeline
        if pipeline is None:
            response.success, response.message = False, 'the node is not configured'
            return response
        path = self.get_parameter('gallery').value
        try:
            pipeline.reload_map(path)
            response.success = True
            response.message = f'{path}: {pipeline.map.gallery.manifest.tile_count} tiles'
            self.get_logger().info(f'gallery reloaded: {response.message}')
        except BiCrossNetError as error:
            response.success = False
            response.message = f'the gallery in use stays: {error}'
            self.get_logger().error(f'cannot reload: {error}')
        except Exception as error:  # raised, it would leave the caller without an answer
            self._health.count_error(error)
            response.success = False
            response.message = f'the gallery in use stays: {type(error).__name__}: {error}'
            self.get_logger().error(f'cannot reload:\n{traceback.format_exc()}')
        return response

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        reason = refusal(parameters, is_configured=self._pipeline is not None)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        for parameter in parameters:
            self._declared.forget_problem(parameter.name)
        return SetParametersResult(successful=True)

    def _now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds) * 1e-9

    def _on_time_jump(self, jump: Any) -> None:
        if self._pipeline is not None:
            self._pipeline.reset_time()
        self.get_logger().warning('the clock jumped back: forgot orientations, heights and fixes')

    def _publish_health(self) -> None:
        pipeline = self._pipeline
        values = {'state': 'unconfigured' if pipeline is None else 'inactive'}
        problem = ''
        if self._is_active:
            values['state'] = 'active'
            problem = self._health.problem()
            worker = self._worker
            if worker is not None and not worker.is_alive():
                problem = 'the thread that works on frames ended: deactivate and activate again'
        if pipeline is not None:
            manifest = pipeline.map.gallery.manifest
            values['gallery'] = str(pipeline.map.gallery.path)
            values['gallery_tiles'] = str(manifest.tile_count)
            values['model_id'] = pipeline.encoder.model_id
            values['runtime'] = pipeline.encoder.runtime
            values['gps_refused'] = str(pipeline.sensors.gps_refused)
        values.update(self._health.values())
        array = health_message(self.get_name(), problem, values)
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def count_callback_error(self, error: Exception) -> None:
        """Say that a callback failed; for the handler of that error."""
        self._health.count_error(error)
        self.get_logger().error(
            f'internal error in a callback:\n{traceback.format_exc()}', throttle_duration_sec=5.0
        )


def start(node: Geolocalizer) -> None:
    """Configure and activate, where the parameter `autostart` says so."""
    if node.get_parameter('autostart').value and node.trigger_configure() == OK:
        node.trigger_activate()


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    rclpy.init(args=args)
    node = executor = None
    try:
        node = Geolocalizer()
        logging.getLogger('bicrossnet_ros').addHandler(RosLogHandler(node.get_logger()))
        executor = MultiThreadedExecutor(num_threads=2)
        executor.add_node(node)
        start(node)
        spin_through_errors(executor, node.count_callback_error)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        # A signal may end the context while the executor is about to wait: an RCLError.
        if rclpy.ok():
            raise
    finally:
        # Under a launch file Ctrl-C arrives twice, and SIGTERM follows: they would interrupt this.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.stop()
        if executor is not None:
            executor.shutdown(timeout_sec=2.0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
