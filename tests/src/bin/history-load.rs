//! The clients of `tests/faults.rs`.

fn main() -> anyhow::Result<()> {
    carob_testkit::load::run_load(std::env::args().skip(1))
}
