//! The CSI driver of `tests/csi.rs`.

fn main() -> anyhow::Result<()> {
    carob_testkit::serve_csi_driver(carob_testkit::CsiDriverConfig::parse(std::env::args().skip(1))?)
}
