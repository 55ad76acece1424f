//! Label and field selectors: parsing and matching (apimachinery pkg/labels/selector.go, pkg/fields/selector.go).

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::names;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
}

/// Conjunction of requirements over labels. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// An absent selector: matches nothing.
    nothing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    In(Vec<String>),
    /// Also matches when the label is absent.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

impl LabelSelector {
    /// Parses the query form: `a=b,c in (d,e),!f,g>3`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser::new(text);
        let mut requirements = Vec::new();
        if parser.peek().is_some() {
            loop {
                requirements.push(parser.requirement()?);
                match parser.next() {
                    None => break,
                    Some(Token::Comma) if parser.peek().is_some() => {}
                    Some(Token::Comma) => {
                        return Err(SelectorError::Requirement("found '', expected: identifier after ','".to_owned()));
                    }
                    Some(other) => return Err(unexpected(&other, "',' or 'end of string'")),
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From the JSON of a metav1.LabelSelector: null matches nothing, `{}` everything, as upstream's
    /// `LabelSelectorAsSelector`.
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let labels = selector.get("matchLabels").and_then(Value::as_object);
        let mut this = labels.map(Self::from_map).unwrap_or_default();
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |key| expression.get(key).and_then(Value::as_str).unwrap_or_default();
            let values = || -> Vec<String> {
                let values = expression.get("values").and_then(Value::as_array);
                values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let op = match text("operator") {
                "In" => Op::In(values()),
                "NotIn" => Op::NotIn(values()),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            this.requirements.push(Requirement { key: text("key").to_owned(), op });
        }
        Ok(this)
    }

    /// From a plain map such as a Service's or ReplicationController's selector.
    pub fn from_map(labels: &Map<String, Value>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                op: Op::In(vec![value.as_str().unwrap_or_default().to_owned()]),
            })
            .collect();
        Self { requirements, nothing: false }
    }

    /// A selector that matches nothing.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Whether every requirement holds; `None` stands for an object without labels.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels?.get(key)?.as_str())
    }

    /// [`LabelSelector::matches`] for labels kept in any form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl std::fmt::Display for LabelSelector {
    /// The query form, as Scale's status.selector carries it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, Requirement { key, op }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match op {
                Op::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Op::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Op::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Op::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Op::Exists => write!(f, "{key}")?,
                Op::DoesNotExist => write!(f, "!{key}")?,
                Op::GreaterThan(bound) => write!(f, "{key}>{bound}")?,
                Op::LessThan(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.op {
            Op::In(values) => value.is_some_and(|v| values.iter().any(|allowed| allowed == v)),
            Op::NotIn(values) => value.is_none_or(|v| values.iter().all(|banned| banned != v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan(bound) => number().is_some_and(|n| n > *bound),
            Op::LessThan(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Open,
    Close,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::Not => "!",
            Token::Equals => "=",
            Token::NotEquals => "!=",
            Token::Greater => ">",
            Token::Less => "<",
        }
    }
}

fn unexpected(found: &Token<'_>, expected: &str) -> SelectorError {
    SelectorError::Requirement(format!("found '{}', expected: {expected}", found.text()))
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// The next token and the text after it.
    fn lex(&self) -> Option<(Token<'a>, &'a str)> {
        let text = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let symbols = [
            ("!=", Token::NotEquals),
            ("==", Token::Equals),
            ("=", Token::Equals),
            ("!", Token::Not),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
            (">", Token::Greater),
            ("<", Token::Less),
        ];
        for (symbol, token) in symbols {
            if let Some(rest) = text.strip_prefix(symbol) {
                return Some((token, rest));
            }
        }
        let end = text.find(|c: char| "=!,()><".contains(c) || c.is_whitespace()).unwrap_or(text.len());
        (end > 0).then(|| (Token::Word(&text[..end]), &text[end..]))
    }

    fn peek(&self) -> Option<Token<'a>> {
        Some(self.lex()?.0)
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let (token, rest) = self.lex()?;
        self.rest = rest;
        Some(token)
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = self.peek() == Some(Token::Not);
        if negated {
            self.next();
        }
        let key = match self.next() {
            Some(Token::Word(word)) => word,
            Some(other) => return Err(unexpected(&other, "identifier")),
            None => return Err(SelectorError::Requirement("found '', expected: identifier".to_owned())),
        };
        if let Some(error) = names::qualified_name(key).first() {
            return Err(SelectorError::Requirement(format!("key: Invalid value: {key:?}: {error}")));
        }
        let key = key.to_owned();
        let op = if negated { Op::DoesNotExist } else { self.operation(&key)? };
        Ok(Requirement { key, op })
    }

    fn operation(&mut self, key: &str) -> Result<Op, SelectorError> {
        let Some(token) = self.peek() else { return Ok(Op::Exists) };
        if token == Token::Comma {
            return Ok(Op::Exists);
        }
        self.next();
        match token {
            Token::Equals => Ok(Op::In(vec![self.value(key)?])),
            Token::NotEquals => Ok(Op::NotIn(vec![self.value(key)?])),
            Token::Greater => Ok(Op::GreaterThan(self.bound(key)?)),
            Token::Less => Ok(Op::LessThan(self.bound(key)?)),
            Token::Word("in") => Ok(Op::In(self.values(key)?)),
            Token::Word("notin") => Ok(Op::NotIn(self.values(key)?)),
            other => Err(unexpected(&other, "in, notin, =, ==, !=, gt, lt")),
        }
    }

    /// One value; nothing stands for the empty one.
    fn value(&mut self, key: &str) -> Result<String, SelectorError> {
        let value = match self.peek() {
            None | Some(Token::Comma) => "",
            Some(Token::Word(word)) => {
                self.next();
                word
            }
            Some(other) => return Err(unexpected(&other, "identifier")),
        };
        check_value(key, value)
    }

    fn bound(&mut self, key: &str) -> Result<i64, SelectorError> {
        let value = self.value(key)?;
        value.parse().map_err(|_| {
            SelectorError::Requirement(format!(
                "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Some(Token::Open) => {}
            Some(other) => return Err(unexpected(&other, "'('")),
            None => return Err(SelectorError::Requirement("found '', expected: '('".to_owned())),
        }
        let mut values = Vec::new();
        loop {
            let value = match self.peek() {
                Some(Token::Word(word)) => {
                    self.next();
                    word
                }
                _ => "",
            };
            values.push(check_value(key, value)?);
            match self.next() {
                Some(Token::Comma) => {}
                Some(Token::Close) => break,
                Some(other) => return Err(unexpected(&other, "',' or ')'")),
                None => return Err(SelectorError::Requirement("found '', expected: ',' or ')'".to_owned())),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn check_value(key: &str, value: &str) -> Result<String, SelectorError> {
    match names::label_value(value).first() {
        None => Ok(value.to_owned()),
        Some(error) => Err(SelectorError::Requirement(format!("values[0][{key}]: Invalid value: {value:?}: {error}"))),
    }
}

/// Conjunction of `path=value` and `path!=value` terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    pub path: String,
    /// Whether the field must equal the value, or must not.
    pub equal: bool,
    pub value: String,
}

impl FieldSelector {
    /// Parses `a=b,c!=d`, with `\` escaping `,`, `=` and `\` in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|term| !term.is_empty()) {
            let wrong = || SelectorError::Term { selector: text.to_owned(), term: term.to_owned() };
            let at = term.find(['=', '!']).ok_or_else(wrong)?;
            let (path, operation) = term.split_at(at);
            let (equal, value) = match (operation.strip_prefix("!="), operation.strip_prefix("=")) {
                (Some(value), _) => (false, value),
                (None, Some(value)) => (true, value.strip_prefix('=').unwrap_or(value)),
                (None, None) => return Err(wrong()),
            };
            let value = unescape(value).ok_or_else(wrong)?;
            terms.push(FieldTerm { path: path.to_owned(), equal, value });
        }
        Ok(Self { terms })
    }

    /// `field` answers the value of a path in the object, "" when unset.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.terms.iter().all(|term| (field(&term.path) == term.value) == term.equal)
    }

    /// The value that `path` is required to equal, if it is; lets a list by metadata.name become a get.
    pub fn required_value(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.path == path).map(|term| term.value.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => out.push(c),
                _ => return None,
            },
            '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn label_selectors_match_as_upstream() {
        let object = labels(json!({"app": "web", "tier": "front", "n": "5", "empty": ""}));
        for (selector, expect) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=x", true),
            ("app in (web,db)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("missing notin (a)", true),
            ("missing in (a)", false),
            ("app", true),
            ("missing", false),
            ("!missing", true),
            ("!app", false),
            ("n>4", true),
            ("n>5", false),
            ("n<6", true),
            ("app>4", false),
            ("app=web,tier=front", true),
            ("app=web,tier=back", false),
            ("empty=", true),
            ("empty in (,a)", true),
            (" app = web , tier ", true),
            ("missing=", false),
            ("example.com/a=b", false),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap_or_else(|e| panic!("{selector:?}: {e}"));
            assert_eq!(parsed.matches(Some(&object)), expect, "{selector:?}");
        }
    }

    #[test]
    fn malformed_label_selectors() {
        for (selector, expect) in [
            ("a=b,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: identifier"),
            ("a in b", "found 'b', expected: '('"),
            ("a in (b", "expected: ',' or ')'"),
            ("a b", "found 'b', expected: in, notin"),
            ("a>b", "must be an integer"),
            ("-a=b", "key: Invalid value: \"-a\""),
            ("a=-b", "values[0][a]: Invalid value: \"-b\""),
            ("a=b c", "expected: ',' or 'end of string'"),
            ("!", "expected: identifier"),
        ] {
            let error = LabelSelector::parse(selector).expect_err(selector).to_string();
            assert!(error.contains(expect), "{selector:?}: {error}");
        }
    }

    #[test]
    fn json_selectors() {
        let object = labels(json!({"app": "web"}));
        for (selector, expect) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}), true),
        ] {
            assert_eq!(
                LabelSelector::from_json(&selector).expect("valid").matches(Some(&object)),
                expect,
                "{selector}"
            );
        }
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        assert_eq!(
            LabelSelector::from_json(&bad).map_err(|e| e.to_string()),
            Err("\"Like\" is not a valid label selector operator".to_owned())
        );
    }

    #[test]
    fn field_selectors() {
        let field = |path: &str| Cow::Borrowed(if path == "metadata.name" { "web,1" } else { "" });
        for (selector, expect) in [
            ("", true),
            ("metadata.name=web\\,1", true),
            ("metadata.name==web\\,1", true),
            ("metadata.name!=a", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("metadata.name=web", false),
            ("metadata.name!=a,spec.nodeName=x", false),
        ] {
            assert_eq!(FieldSelector::parse(selector).expect(selector).matches(field), expect, "{selector:?}");
        }
        for selector in ["a", "a=b=c", "a=\\x", "a!b"] {
            let error = FieldSelector::parse(selector).expect_err(selector).to_string();
            assert_eq!(error, format!("invalid selector: '{selector}'; can't understand '{selector}'"));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_prints_back(text in "[a-c=!,()>< \\\\]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string()).expect("own output parses");
                prop_assert_eq!(again, selector);
            }
            prop_assert!(FieldSelector::parse(&text).map_or(true, |s| s.terms().len() <= text.len()));
        }
    }
}
