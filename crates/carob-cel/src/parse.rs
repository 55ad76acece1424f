//! From text to a tree: operator precedence over the grammar of cel-go (parser/gen/CEL.g4), with its limits.
//!
//! A node's place is where cel-go sees it: a call at its parenthesis, an operator at itself, a selection at its dot.

use std::sync::Arc;

use crate::ast::{Entry, Expr, Item, Kind, Literal, StructField, op};
use crate::error::{CompileError, ISSUES_MAX, Issue};
use crate::escape::is_reserved;
use crate::lex::{self, Spanned, Token};

/// The longest expression, in code points (cel-go parser: expressionSizeCodePointLimit).
pub(crate) const CODE_POINTS_MAX: usize = 100_000;
/// How high a tree may be (cel-go parser: maxRecursionDepth). What macros add is counted.
pub(crate) const HEIGHT_MAX: usize = 250;

const PRIMARY: &str =
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const MEMBER: &str =
    "{'[', '{', '(', '.', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// An expression as it was written, and where its lines begin.
pub(crate) struct Source {
    pub(crate) text: String,
    chars: Vec<char>,
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let breaks = chars.iter().enumerate().filter(|(_, character)| **character == '\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(breaks).collect();
        Self { text: text.to_owned(), chars, lines }
    }

    /// Line from 1 and column from 0.
    fn location(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|begin| *begin <= at);
        (line, at - self.lines[line - 1])
    }
}

/// Collects faults, up to the number that is reported.
pub(crate) struct Issues<'s> {
    source: &'s Source,
    list: Vec<Issue>,
    count: usize,
}

impl<'s> Issues<'s> {
    pub(crate) fn new(source: &'s Source) -> Self {
        Self { source, list: Vec::new(), count: 0 }
    }

    pub(crate) fn report(&mut self, at: usize, message: impl Into<String>) {
        let location = Some(self.source.location(at));
        self.add(Issue { location, message: message.into() });
    }

    fn report_whole(&mut self, message: impl Into<String>) {
        self.add(Issue { location: None, message: message.into() });
    }

    fn add(&mut self, issue: Issue) {
        self.count += 1;
        if self.count <= ISSUES_MAX {
            self.list.push(issue);
        }
    }

    pub(crate) fn finish(self) -> Result<(), CompileError> {
        if self.count == 0 { Ok(()) } else { Err(CompileError::new(&self.source.text, self.list, self.count)) }
    }
}

/// A parsed expression and how many nodes were numbered.
pub(crate) struct Parsed {
    pub(crate) root: Expr,
    pub(crate) ids: usize,
}

pub(crate) fn parse(source: &Source) -> Result<Parsed, CompileError> {
    let mut issues = Issues::new(source);
    if source.chars.len() > CODE_POINTS_MAX {
        let size = source.chars.len();
        issues.report_whole(format!("expression code point size exceeds limit: size: {size}, limit {CODE_POINTS_MAX}"));
    }
    let mut faults = Vec::new();
    let tokens = if issues.count == 0 { lex::tokens(&source.chars, &mut faults) } else { Vec::new() };
    for fault in faults {
        issues.report(fault.at, format!("Syntax error: {}", fault.message));
    }
    let end = Spanned { token: Token::End, at: source.chars.len(), len: 0 };
    let mut parser = Parser { chars: &source.chars, tokens, end, next: 0, ids: 0, depth: 0, issues };
    let root = if parser.issues.count == 0 { parser.whole() } else { Err(Stop) };
    match root {
        Ok(root) => {
            let ids = parser.ids;
            parser.issues.finish()?;
            Ok(Parsed { root, ids })
        }
        Err(Stop) => match parser.issues.finish() {
            Err(error) => Err(error),
            // Whoever stops has reported why.
            Ok(()) => Err(CompileError::new(&source.text, Vec::new(), 0)),
        },
    }
}

/// A fault was reported after which the text makes no sense.
pub(crate) struct Stop;

pub(crate) struct Parser<'s> {
    chars: &'s [char],
    tokens: Vec<Spanned>,
    end: Spanned,
    next: usize,
    ids: usize,
    depth: usize,
    issues: Issues<'s>,
}

impl Parser<'_> {
    fn whole(&mut self) -> Result<Expr, Stop> {
        let root = self.expr()?;
        if self.peek().token == Token::End {
            return Ok(root);
        }
        let text = self.text_of(self.peek());
        let at = self.peek().at;
        let expected =
            "{<EOF>, '==', '!=', 'in', '<', '<=', '>=', '>', '&&', '||', '[', '.', '-', '?', '+', '*', '/', '%'}";
        self.fault(at, &format!("extraneous input '{text}' expecting {expected}"))
    }

    fn peek(&self) -> &Spanned {
        self.tokens.get(self.next).unwrap_or(&self.end)
    }

    fn advance(&mut self) -> Spanned {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn text_of(&self, token: &Spanned) -> String {
        if token.token == Token::End {
            return "<EOF>".to_owned();
        }
        self.chars[token.at..token.at + token.len].iter().collect()
    }

    fn is(&self, mark: &str) -> bool {
        matches!(&self.peek().token, Token::Mark(is) if *is == mark)
    }

    /// Takes the mark if it is next, and says where it was.
    fn take(&mut self, mark: &str) -> Option<usize> {
        self.is(mark).then(|| self.advance().at)
    }

    fn want(&mut self, mark: &str) -> Result<usize, Stop> {
        match self.take(mark) {
            Some(at) => Ok(at),
            None => self.mismatch(&format!("'{mark}'")),
        }
    }

    fn mismatch<T>(&mut self, expected: &str) -> Result<T, Stop> {
        let text = self.text_of(self.peek());
        let at = self.peek().at;
        self.fault(at, &format!("mismatched input '{text}' expecting {expected}"))
    }

    fn fault<T>(&mut self, at: usize, message: &str) -> Result<T, Stop> {
        self.issues.report(at, format!("Syntax error: {message}"));
        Err(Stop)
    }

    fn too_deep<T>(&mut self) -> Result<T, Stop> {
        self.issues.report_whole(format!("expression recursion limit exceeded: {HEIGHT_MAX}"));
        Err(Stop)
    }

    /// Reports a fault after which reading goes on.
    pub(crate) fn report(&mut self, at: usize, message: &str) -> Expr {
        self.issues.report(at, message);
        self.node(at, Kind::Unreadable, 0)
    }

    pub(crate) fn node(&mut self, at: usize, kind: Kind, height: usize) -> Expr {
        self.ids += 1;
        Expr { id: self.ids - 1, at, kind, height: height + 1 }
    }

    /// As `node`, and refuses what is too high.
    pub(crate) fn built(&mut self, at: usize, kind: Kind, height: usize) -> Result<Expr, Stop> {
        if height >= HEIGHT_MAX {
            return self.too_deep();
        }
        Ok(self.node(at, kind, height))
    }

    pub(crate) fn call(&mut self, at: usize, function: &str, args: Vec<Expr>) -> Result<Expr, Stop> {
        let height = args.iter().map(|arg| arg.height).max().unwrap_or(0);
        self.built(at, Kind::Call { function: function.into(), target: None, args }, height)
    }

    /// The same tree with numbers of its own.
    pub(crate) fn copy(&mut self, expr: &Expr) -> Expr {
        let mut copy = expr.clone();
        renumber(&mut copy, &mut self.ids);
        copy
    }

    pub(crate) fn ids(&self) -> usize {
        self.ids
    }

    pub(crate) fn too_many_nodes<T>(&mut self) -> Result<T, Stop> {
        self.issues.report_whole("expression has too many nodes after macro expansion");
        Err(Stop)
    }

    /// Few steps of recursion for each level of an expression, since a thread that serves requests has a small stack.
    fn expr(&mut self) -> Result<Expr, Stop> {
        if self.depth >= HEIGHT_MAX {
            return self.too_deep();
        }
        self.depth += 1;
        let out = self.ternary();
        self.depth -= 1;
        out
    }

    fn ternary(&mut self) -> Result<Expr, Stop> {
        let condition = self.operators()?;
        let Some(at) = self.take("?") else { return Ok(condition) };
        let yes = self.operators()?;
        self.want(":")?;
        let no = self.expr()?;
        self.call(at, op::CONDITIONAL, vec![condition, yes, no])
    }

    /// Operands with operators between them, by their precedence.
    fn operators(&mut self) -> Result<Expr, Stop> {
        let mut operands = vec![self.unary()?];
        let mut operators: Vec<Operator> = Vec::new();
        while let Token::Mark(mark) = self.peek().token {
            let Some((function, precedence)) = binary_operator(mark) else { break };
            let at = self.advance().at;
            // Chains of `&&` and of `||` are joined when they are complete.
            while operators.last().is_some_and(|last| {
                last.precedence > precedence || (last.precedence == precedence && precedence > LOGICAL_MAX)
            }) {
                self.reduce(&mut operands, &mut operators)?;
            }
            operators.push(Operator { at, function, precedence });
            operands.push(self.unary()?);
        }
        while !operators.is_empty() {
            self.reduce(&mut operands, &mut operators)?;
        }
        operands.pop().ok_or(Stop)
    }

    /// Joins the last operator with its operands; of a logical one the whole chain.
    fn reduce(&mut self, operands: &mut Vec<Expr>, operators: &mut Vec<Operator>) -> Result<(), Stop> {
        let Some(last) = operators.last() else { return Err(Stop) };
        let (function, precedence) = (last.function, last.precedence);
        let chain = if precedence > LOGICAL_MAX {
            1
        } else {
            operators.iter().rev().take_while(|operator| operator.precedence == precedence).count()
        };
        let places: Vec<usize> = operators.drain(operators.len() - chain..).map(|operator| operator.at).collect();
        let mut terms = operands.split_off(operands.len().saturating_sub(chain + 1)).into_iter();
        let joined = self.balanced(function, &mut terms, &places)?;
        operands.push(joined);
        Ok(())
    }

    /// A balanced tree: a long chain is not a high tree.
    fn balanced(
        &mut self,
        function: &str,
        terms: &mut std::vec::IntoIter<Expr>,
        places: &[usize],
    ) -> Result<Expr, Stop> {
        if places.is_empty() {
            return terms.next().ok_or(Stop);
        }
        let middle = places.len() / 2;
        let left = self.balanced(function, terms, &places[..middle])?;
        let right = self.balanced(function, terms, &places[middle + 1..])?;
        self.call(places[middle], function, vec![left, right])
    }

    fn unary(&mut self) -> Result<Expr, Stop> {
        let (mark, function) = if self.is("!") {
            ("!", op::NOT)
        } else if self.is("-") && !self.is_negative_number() {
            ("-", op::NEGATE)
        } else {
            return self.member();
        };
        let at = self.peek().at;
        let mut odd = false;
        while self.is(mark) && (mark == "!" || !odd || !self.is_negative_number()) {
            self.advance();
            odd = !odd;
        }
        if (self.is("!") || self.is("-")) && !self.is_negative_number() {
            return self.mismatch(MEMBER);
        }
        let operand = self.member()?;
        if odd { self.call(at, function, vec![operand]) } else { Ok(operand) }
    }

    fn is_negative_number(&self) -> bool {
        self.is("-")
            && matches!(self.tokens.get(self.next + 1).map(|next| &next.token), Some(Token::Int(_) | Token::Double(_)))
    }

    fn member(&mut self) -> Result<Expr, Stop> {
        let parenthesised = self.is("(");
        let mut expr = self.primary()?;
        let mut named = !parenthesised;
        loop {
            if let Some(at) = self.take(".") {
                expr = self.selection(at, expr)?;
            } else if let Some(at) = self.take("[") {
                let function = if self.take("?").is_some() { op::OPT_INDEX } else { op::INDEX };
                let index = self.expr()?;
                self.want("]")?;
                expr = self.call(at, function, vec![expr, index])?;
                named = false;
            } else if self.is("{")
                && named
                && let Some(name) = expr.qualified_name()
            {
                expr = self.message(name)?;
                named = false;
            } else {
                return Ok(expr);
            }
        }
    }

    fn selection(&mut self, at: usize, operand: Expr) -> Result<Expr, Stop> {
        let optional = self.take("?").is_some();
        let token = self.advance();
        let (name, plain) = match token.token {
            Token::Ident(name) => (name, true),
            Token::Escaped(_) => {
                return Ok(self.report(token.at, "unsupported syntax: '`'"));
            }
            _ => {
                self.next -= 1;
                return self.mismatch("IDENTIFIER");
            }
        };
        if optional {
            let field = self.node(token.at, Kind::Literal(Literal::String(name)), 0);
            return self.call(at, op::OPT_SELECT, vec![operand, field]);
        }
        if plain && let Some(open) = self.take("(") {
            let args = self.arguments()?;
            return self.method(open, name, operand, args);
        }
        let height = operand.height;
        self.built(at, Kind::Select { operand: Box::new(operand), field: name, test_only: false }, height)
    }

    fn method(&mut self, at: usize, function: Arc<str>, target: Expr, args: Vec<Expr>) -> Result<Expr, Stop> {
        let (target, args) = match self.expand_method(at, &function, target, args)? {
            Ok(expr) => return Ok(expr),
            Err(unchanged) => unchanged,
        };
        let height = args.iter().map(|arg| arg.height).max().unwrap_or(0).max(target.height);
        self.built(at, Kind::Call { function, target: Some(Box::new(target)), args }, height)
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Stop> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.take(",").is_none() {
                self.want(")")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Result<Expr, Stop> {
        let token = self.advance();
        let at = token.at;
        let literal = match token.token {
            Token::Ident(name) => return self.identifier(at, name),
            Token::Mark(".") => {
                let Token::Ident(name) = self.advance().token else {
                    self.next -= 1;
                    return self.mismatch("IDENTIFIER");
                };
                return self.identifier(at, name);
            }
            Token::Mark("(") => {
                let inner = self.expr()?;
                self.want(")")?;
                return Ok(inner);
            }
            Token::Mark("[") => return self.list(at),
            Token::Mark("{") => return self.map(at),
            Token::Mark("-") => return self.number(at, true),
            Token::Int(_) | Token::Uint(_) | Token::Double(_) => {
                self.next -= 1;
                return self.number(at, false);
            }
            Token::String(text) => Literal::String(text),
            Token::Bytes(bytes) => Literal::Bytes(bytes),
            Token::Mark("true") => Literal::Bool(true),
            Token::Mark("false") => Literal::Bool(false),
            Token::Mark("null") => Literal::Null,
            Token::Escaped(_) | Token::Mark(_) | Token::End => {
                self.next -= 1;
                return self.mismatch(PRIMARY);
            }
        };
        Ok(self.node(at, Kind::Literal(literal), 0))
    }

    fn number(&mut self, at: usize, negative: bool) -> Result<Expr, Stop> {
        let sign = if negative { "-" } else { "" };
        let (literal, kind) = match self.advance().token {
            Token::Int(text) => {
                let value = match text.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16),
                    None => format!("{sign}{text}").parse(),
                };
                (value.ok().map(Literal::Int), "int")
            }
            Token::Uint(text) => {
                let value = match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => text.parse(),
                };
                (value.ok().map(Literal::Uint), "uint")
            }
            Token::Double(text) => {
                let value = format!("{sign}{text}").parse::<f64>().ok().filter(|value| value.is_finite());
                (value.map(Literal::Double), "double")
            }
            _ => {
                self.next -= 1;
                return self.mismatch(PRIMARY);
            }
        };
        match literal {
            Some(literal) => Ok(self.node(at, Kind::Literal(literal), 0)),
            None => Ok(self.report(at, &format!("invalid {kind} literal"))),
        }
    }

    fn identifier(&mut self, at: usize, name: Arc<str>) -> Result<Expr, Stop> {
        if is_reserved(&name) {
            return Ok(self.report(at, &format!("reserved identifier: {name}")));
        }
        let Some(open) = self.take("(") else { return Ok(self.node(at, Kind::Ident(name), 0)) };
        let args = self.arguments()?;
        if &*name == "has" && args.len() == 1 {
            return self.presence(open, args);
        }
        self.call(open, &name, args)
    }

    fn presence(&mut self, at: usize, mut args: Vec<Expr>) -> Result<Expr, Stop> {
        match args.pop() {
            Some(Expr { kind: Kind::Select { operand, field, .. }, .. }) => {
                let height = operand.height;
                self.built(at, Kind::Select { operand, field, test_only: true }, height)
            }
            other => {
                let at = other.map_or(at, |other| other.at);
                Ok(self.report(at, "invalid argument to has() macro"))
            }
        }
    }

    fn list(&mut self, at: usize) -> Result<Expr, Stop> {
        let mut items = Vec::new();
        let mut height = 0;
        while self.take("]").is_none() {
            let optional = self.take("?").is_some();
            let value = self.expr()?;
            height = height.max(value.height);
            items.push(Item { value, optional });
            if self.take(",").is_none() && !self.is("]") {
                return self.mismatch("']'");
            }
        }
        self.built(at, Kind::List { items }, height)
    }

    fn map(&mut self, at: usize) -> Result<Expr, Stop> {
        let mut entries = Vec::new();
        let mut height = 0;
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let key = self.expr()?;
            self.want(":")?;
            let value = self.expr()?;
            height = height.max(key.height).max(value.height);
            entries.push(Entry { key, value, optional });
            if self.take(",").is_none() && !self.is("}") {
                return self.mismatch("'}'");
            }
        }
        self.built(at, Kind::Map { entries }, height)
    }

    fn message(&mut self, name: String) -> Result<Expr, Stop> {
        let at = self.want("{")?;
        let mut fields = Vec::new();
        let mut height = 0;
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let Token::Ident(field) = self.advance().token else {
                self.next -= 1;
                return self.mismatch("IDENTIFIER");
            };
            let at = self.want(":")?;
            let value = self.expr()?;
            height = height.max(value.height);
            fields.push(StructField { at, name: field, value, optional });
            if self.take(",").is_none() && !self.is("}") {
                return self.mismatch("'}'");
            }
        }
        self.built(at, Kind::Struct { name: name.into(), fields }, height)
    }
}

/// An operator that waits for its right operand.
struct Operator {
    at: usize,
    function: &'static str,
    precedence: u8,
}

/// The precedence of `||` and `&&`; what is above joins from the left at once.
const LOGICAL_MAX: u8 = 1;

fn binary_operator(mark: &str) -> Option<(&'static str, u8)> {
    Some(match mark {
        "||" => (op::OR, 0),
        "&&" => (op::AND, LOGICAL_MAX),
        "<" => (op::LESS, 2),
        "<=" => (op::LESS_EQUALS, 2),
        ">" => (op::GREATER, 2),
        ">=" => (op::GREATER_EQUALS, 2),
        "==" => (op::EQUALS, 2),
        "!=" => (op::NOT_EQUALS, 2),
        "in" => (op::IN, 2),
        "+" => (op::ADD, 3),
        "-" => (op::SUBTRACT, 3),
        "*" => (op::MULTIPLY, 4),
        "/" => (op::DIVIDE, 4),
        "%" => (op::MODULO, 4),
        _ => return None,
    })
}

fn renumber(expr: &mut Expr, ids: &mut usize) {
    expr.id = *ids;
    *ids += 1;
    match &mut expr.kind {
        Kind::Unreadable | Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } => renumber(operand, ids),
        Kind::Call { target, args, .. } => {
            for child in target.iter_mut().map(|target| &mut **target).chain(args) {
                renumber(child, ids);
            }
        }
        Kind::List { items } => {
            for item in items {
                renumber(&mut item.value, ids);
            }
        }
        Kind::Map { entries } => {
            for entry in entries {
                renumber(&mut entry.key, ids);
                renumber(&mut entry.value, ids);
            }
        }
        Kind::Struct { fields, .. } => {
            for field in fields {
                renumber(&mut field.value, ids);
            }
        }
        Kind::Comprehension(fold) => {
            for child in [&mut fold.range, &mut fold.init, &mut fold.condition, &mut fold.step, &mut fold.result] {
                renumber(child, ids);
            }
        }
    }
}
