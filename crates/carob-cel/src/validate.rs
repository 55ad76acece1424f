//! What is checked of literals beside their types (cel-go ext/formatting.go, stringFormatValidator).

use crate::ast::{Expr, Item, Kind, Literal};
use crate::check::Checked;
use crate::functions::formatting::{Clause, clauses, refusal};
use crate::parse::Issues;
use crate::types::Type;

/// Checks each format string that is written beside its arguments.
pub(crate) fn validate(expr: &Expr, checked: &Checked, issues: &mut Issues<'_>) {
    match &expr.kind {
        Kind::Unreadable | Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } => validate(operand, checked, issues),
        Kind::Call { function, target, args } => {
            if let (Some(target), [arg]) = (target, &args[..])
                && let (Kind::Literal(Literal::String(format)), Kind::List { items }) = (&target.kind, &arg.kind)
                && &**function == "format"
            {
                check_format(expr.at, format, items, checked, issues);
            }
            for child in target.iter().map(|target| &**target).chain(args) {
                validate(child, checked, issues);
            }
        }
        Kind::List { items } => items.iter().for_each(|item| validate(&item.value, checked, issues)),
        Kind::Map { entries } => {
            for entry in entries {
                validate(&entry.key, checked, issues);
                validate(&entry.value, checked, issues);
            }
        }
        Kind::Struct { fields, .. } => fields.iter().for_each(|field| validate(&field.value, checked, issues)),
        Kind::Comprehension(fold) => {
            for child in [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result] {
                validate(child, checked, issues);
            }
        }
    }
}

fn check_format(at: usize, format: &str, items: &[Item], checked: &Checked, issues: &mut Issues<'_>) {
    let clauses = match clauses(format) {
        Ok(clauses) => clauses,
        Err(message) => return issues.report(at, message),
    };
    let verbs: Vec<char> = clauses
        .iter()
        .filter_map(|clause| match clause {
            Clause::Value { verb, .. } => Some(*verb),
            Clause::Text(_) => None,
        })
        .collect();
    if verbs.len() > items.len() {
        return issues.report(at, format!("index {} out of range", items.len()));
    }
    for (verb, item) in verbs.iter().zip(items) {
        let ty = &checked.types[item.value.id];
        if !accepts(*verb, ty) {
            issues.report(item.value.at, format!("error during formatting: {}", refusal(*verb, &base_name(ty))));
        }
    }
    if items.len() > verbs.len() {
        let (expected, got) = (verbs.len(), items.len());
        issues.report(at, format!("too many arguments supplied to string.format (expected {expected}, got {got})"));
    }
}

/// The name without parameters: `list`, not `list(int)`.
fn base_name(ty: &Type) -> String {
    let text = ty.to_string();
    text.split('(').next().unwrap_or(&text).to_owned()
}

fn accepts(verb: char, ty: &Type) -> bool {
    match (verb, ty) {
        (_, Type::Dyn | Type::Error | Type::Param(_)) => true,
        ('d' | 'o', Type::Int | Type::Uint) => true,
        ('f' | 'e', Type::Double | Type::String) => true,
        ('b', Type::Int | Type::Uint | Type::Bool) => true,
        ('x' | 'X', Type::Int | Type::Uint | Type::String | Type::Bytes) => true,
        ('s', Type::Optional(_) | Type::Object(_) | Type::Named(_) | Type::Message(_)) => false,
        ('s', _) => true,
        _ => false,
    }
}
