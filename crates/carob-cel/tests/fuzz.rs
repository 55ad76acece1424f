//! What users write as rules, tried with hostile bytes (`carob-fuzz`).

use std::path::PathBuf;

use carob_cel::{Activation, Budget, DeclType, Environment};
use serde_json::json;

/// What upstream gives one rule (apiserver `pkg/apis/cel/config.go`, `PerCallLimit`).
const BUDGET: u64 = 1_000_000;

#[test]
fn expressions_compile_and_end() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/expressions");
    let environment = Environment::new().variable("self", DeclType::Dyn);
    let object = json!({
        "replicas": 3, "a": { "b": true }, "list": [{ "name": "x" }, { "name": "y" }], "text": "a".repeat(1000),
    });
    let activation = Activation::new().json("self", &object, None);
    carob_fuzz::run(corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(program) = environment.compile(text) else { return };
        let mut budget = Budget::new(BUDGET);
        drop(program.evaluate(&activation, &mut budget));
    });
}
