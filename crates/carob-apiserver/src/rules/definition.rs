//! The rules of a CustomResourceDefinition as it is written: whether they compile, and what they may cost
//! (apiextensions-apiserver pkg/apis/apiextensions/validation).

use carob_api::schema::ListType;
use carob_api::schema::structural::{Additional, Node, Rule};
use carob_api::strategy::definition::{is_shared, schema_path};
use carob_api::{FieldError, FieldErrors, FieldPath, meta};
use carob_cel::{DeclType, REQUEST_BYTES_MAX, Type};
use serde_json::{Map, Value};

use super::compile::{CompiledRule, compile_rule, decl};

/// Estimated cost of one rule (validation, `StaticEstimatedCostLimit`).
const RULE_COST_MAX: u64 = 10_000_000;
/// Estimated cost of all rules of a version (validation, `StaticEstimatedCRDCostLimit`).
const SCHEMA_COST_MAX: u64 = 100_000_000;

/// Errors of the rules of those versions whose schema is not what it was.
pub(super) fn check(new: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let versions = |object| meta::items_at(object, &["spec", "versions"]);
    for (index, version) in versions(new).iter().enumerate() {
        let Some(schema) = meta::at(version, &["schema", "openAPIV3Schema"]) else { continue };
        let before = old.and_then(|old| versions(old).iter().find(|other| other["name"] == version["name"]));
        if before.and_then(|before| meta::at(before, &["schema", "openAPIV3Schema"])) == Some(schema) {
            continue;
        }
        if index > 0 && is_shared(versions(new), "schema") {
            break;
        }
        let path = schema_path(versions(new), index);
        // A schema that does not parse was refused before.
        let Ok(node) = Node::parse(schema) else { continue };
        let mut walk = Walk { errors: &mut errors, total: 0 };
        let place = Place { is_root: true, cardinality: Some(1), uncorrelated: None };
        walk.node(&node, "self", &path, &place);
        if walk.total > SCHEMA_COST_MAX {
            let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            let total = walk.total;
            errors.push(FieldError::forbidden(&path, exceeded(name, total, SCHEMA_COST_MAX)));
        }
    }
    errors
}

struct Walk<'e> {
    errors: &'e mut FieldErrors,
    total: u64,
}

/// What the place of a node says of its rules.
#[derive(Clone)]
struct Place {
    is_root: bool,
    /// How often the node can occur in an object; `None` if nothing bounds it.
    cardinality: Option<u64>,
    /// The first list above whose items are not found in the old object.
    uncorrelated: Option<FieldPath>,
}

impl Place {
    fn times(&self, max: Option<u64>) -> Option<u64> {
        Some(self.cardinality?.saturating_mul(max?))
    }
}

impl Walk<'_> {
    fn node(&mut self, node: &Node, name: &str, path: &FieldPath, place: &Place) {
        if !node.has_rules() {
            return;
        }
        if !node.rules().is_empty() {
            let decl = decl(node, place.is_root, name).unwrap_or(DeclType::Dyn);
            let cardinality = place.cardinality.unwrap_or(REQUEST_BYTES_MAX / (decl.min_serialized_size() + 1));
            for (index, rule) in node.rules().iter().enumerate() {
                let path = path.child("x-kubernetes-validations").index(index);
                self.rule(&compile_rule(rule, &decl), cardinality, place, &path);
            }
        }
        for (key, property) in node.properties() {
            let below = Place {
                is_root: property.is_embedded,
                cardinality: place.cardinality,
                uncorrelated: place.uncorrelated.clone(),
            };
            self.node(property, &format!("{name}.{key}"), &path.child("properties").key(key), &below);
        }
        if let Additional::Node(value) = &node.additional {
            let below = Place {
                is_root: value.is_embedded,
                cardinality: place.times(node.max_properties()),
                uncorrelated: place.uncorrelated.clone(),
            };
            self.node(value, &format!("{name}.@values"), &path.child("additionalProperties"), &below);
        }
        if let Some(item) = &node.items {
            let below = Place {
                is_root: item.is_embedded,
                cardinality: place.times(node.max_items()),
                uncorrelated: place
                    .uncorrelated
                    .clone()
                    .or_else(|| (node.list_type != ListType::Map).then(|| path.clone())),
            };
            self.node(item, &format!("{name}.@items"), &path.child("items"), &below);
        }
    }

    fn rule(&mut self, compiled: &CompiledRule, cardinality: u64, place: &Place, path: &FieldPath) {
        let rule_path = path.child("rule");
        match &compiled.program {
            Err(error) => {
                let detail = format!("compilation failed: {error}");
                self.errors.push(FieldError::invalid(&rule_path, shown(&compiled.rule), detail));
            }
            Ok(program) if *program.output_type() != Type::Bool => {
                let detail = "cel expression must evaluate to a bool";
                self.errors.push(FieldError::invalid(&rule_path, shown(&compiled.rule), detail));
            }
            Ok(program) => self.cost("estimated rule cost", program.estimated_cost(), cardinality, &rule_path),
        }
        let message_path = path.child("messageExpression");
        match &compiled.message {
            None => {}
            Some(Err(error)) => {
                let detail = format!("messageExpression compilation failed: {error}");
                self.errors.push(FieldError::invalid(&message_path, shown(&compiled.rule), detail));
            }
            Some(Ok(program)) if *program.output_type() != Type::String => {
                let detail = "messageExpression must evaluate to a string";
                self.errors.push(FieldError::invalid(&message_path, shown(&compiled.rule), detail));
            }
            Some(Ok(program)) => {
                self.cost("estimated messageExpression cost", program.estimated_cost(), 1, &message_path)
            }
        }
        if compiled.uses_old {
            if let Some(list) = &place.uncorrelated {
                let detail =
                    format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
                self.errors.push(FieldError::invalid(&rule_path, &*compiled.rule.rule, detail));
            }
        } else if compiled.rule.optional_old_self {
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.push(FieldError::invalid(&path.child("optionalOldSelf"), true, detail));
        }
    }

    fn cost(&mut self, name: &str, estimated: u64, cardinality: u64, path: &FieldPath) {
        let cost = estimated.saturating_mul(cardinality);
        self.total = self.total.saturating_add(cost);
        if cost > RULE_COST_MAX {
            self.errors.push(FieldError::forbidden(path, exceeded(name, cost, RULE_COST_MAX)));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a factor that is shown with one digit")]
fn exceeded(name: &str, cost: u64, max: u64) -> String {
    let factor = cost as f64 / max as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A rule as errors show it.
fn shown(rule: &Rule) -> Value {
    let fields = [
        ("rule", &rule.rule),
        ("message", &rule.message),
        ("messageExpression", &rule.message_expression),
        ("reason", &rule.reason),
        ("fieldPath", &rule.field_path),
    ];
    let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
    Value::Object(fields.map(|(name, text)| (name.to_owned(), Value::from(&**text))).collect::<Map<_, _>>())
}
