//! The device plug-in of `tests/devices.rs`.

fn main() -> anyhow::Result<()> {
    carob_testkit::serve_device_plugin(std::env::args().skip(1))
}
