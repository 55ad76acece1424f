//! What users have of other supervisors, tried with hostile bytes (`carob-fuzz`).

use std::path::PathBuf;

use carob_import::{Format, Options, import};

fn run(target: &str, format: Format) {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let options = Options { name: "web".to_owned(), image: Some("busybox".to_owned()) };
    carob_fuzz::run(corpus, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(imported) = import(format, text, &options)
        {
            assert_eq!(imported.pod["kind"], "Pod");
        }
    });
}

#[test]
fn supervisord_files() {
    run("supervisord", Format::Supervisord);
}

#[test]
fn procfiles() {
    run("procfile", Format::Procfile);
}

#[test]
fn compose_files() {
    run("compose", Format::Compose);
}
