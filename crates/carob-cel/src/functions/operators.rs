//! Operators, as overloads of functions with odd names (cel-go common/stdlib/standard.go). The evaluator computes them.

use super::{Cost, Overload, T, built_in};
use crate::ast::op;

const LIST_A: T = T::List(&T::A);
const MAP_AB: T = T::Map(&T::A, &T::B);

const fn binary(name: &'static str, params: &'static [T], result: T, cost: Cost) -> Overload {
    built_in(name, false, params, result, cost)
}

/// An order of every pair of types that has one. Numbers of different types compare.
macro_rules! relation {
    ($name:expr) => {
        [
            binary($name, &[T::Bool, T::Bool], T::Bool, Cost::Unit),
            binary($name, &[T::Int, T::Int], T::Bool, Cost::Unit),
            binary($name, &[T::Int, T::Double], T::Bool, Cost::Unit),
            binary($name, &[T::Int, T::Uint], T::Bool, Cost::Unit),
            binary($name, &[T::Uint, T::Uint], T::Bool, Cost::Unit),
            binary($name, &[T::Uint, T::Double], T::Bool, Cost::Unit),
            binary($name, &[T::Uint, T::Int], T::Bool, Cost::Unit),
            binary($name, &[T::Double, T::Double], T::Bool, Cost::Unit),
            binary($name, &[T::Double, T::Int], T::Bool, Cost::Unit),
            binary($name, &[T::Double, T::Uint], T::Bool, Cost::Unit),
            binary($name, &[T::String, T::String], T::Bool, Cost::CompareText),
            binary($name, &[T::Bytes, T::Bytes], T::Bool, Cost::CompareText),
            binary($name, &[T::Timestamp, T::Timestamp], T::Bool, Cost::Unit),
            binary($name, &[T::Duration, T::Duration], T::Bool, Cost::Unit),
        ]
    };
}

static LESS: [Overload; 14] = relation!(op::LESS);
static LESS_EQUALS: [Overload; 14] = relation!(op::LESS_EQUALS);
static GREATER: [Overload; 14] = relation!(op::GREATER);
static GREATER_EQUALS: [Overload; 14] = relation!(op::GREATER_EQUALS);

pub(super) static OVERLOADS: &[Overload] = &[
    binary(op::CONDITIONAL, &[T::Bool, T::A, T::A], T::A, Cost::Conditional),
    binary(op::AND, &[T::Bool, T::Bool], T::Bool, Cost::And),
    binary(op::OR, &[T::Bool, T::Bool], T::Bool, Cost::And),
    binary(op::NOT, &[T::Bool], T::Bool, Cost::Unit),
    binary(op::NOT_STRICTLY_FALSE, &[T::Bool], T::Bool, Cost::Unit),
    binary(op::EQUALS, &[T::A, T::A], T::Bool, Cost::Equality),
    binary(op::NOT_EQUALS, &[T::A, T::A], T::Bool, Cost::Equality),
    binary(op::ADD, &[T::Bytes, T::Bytes], T::Bytes, Cost::AddText),
    binary(op::ADD, &[T::Double, T::Double], T::Double, Cost::Unit),
    binary(op::ADD, &[T::Duration, T::Duration], T::Duration, Cost::Unit),
    binary(op::ADD, &[T::Duration, T::Timestamp], T::Timestamp, Cost::Unit),
    binary(op::ADD, &[T::Timestamp, T::Duration], T::Timestamp, Cost::Unit),
    binary(op::ADD, &[T::Int, T::Int], T::Int, Cost::Unit),
    binary(op::ADD, &[LIST_A, LIST_A], LIST_A, Cost::AddList),
    binary(op::ADD, &[T::String, T::String], T::String, Cost::AddText),
    binary(op::ADD, &[T::Uint, T::Uint], T::Uint, Cost::Unit),
    binary(op::DIVIDE, &[T::Double, T::Double], T::Double, Cost::Unit),
    binary(op::DIVIDE, &[T::Int, T::Int], T::Int, Cost::Unit),
    binary(op::DIVIDE, &[T::Uint, T::Uint], T::Uint, Cost::Unit),
    binary(op::MODULO, &[T::Int, T::Int], T::Int, Cost::Unit),
    binary(op::MODULO, &[T::Uint, T::Uint], T::Uint, Cost::Unit),
    binary(op::MULTIPLY, &[T::Double, T::Double], T::Double, Cost::Unit),
    binary(op::MULTIPLY, &[T::Int, T::Int], T::Int, Cost::Unit),
    binary(op::MULTIPLY, &[T::Uint, T::Uint], T::Uint, Cost::Unit),
    binary(op::NEGATE, &[T::Double], T::Double, Cost::Unit),
    binary(op::NEGATE, &[T::Int], T::Int, Cost::Unit),
    binary(op::SUBTRACT, &[T::Double, T::Double], T::Double, Cost::Unit),
    binary(op::SUBTRACT, &[T::Duration, T::Duration], T::Duration, Cost::Unit),
    binary(op::SUBTRACT, &[T::Int, T::Int], T::Int, Cost::Unit),
    binary(op::SUBTRACT, &[T::Timestamp, T::Duration], T::Timestamp, Cost::Unit),
    binary(op::SUBTRACT, &[T::Timestamp, T::Timestamp], T::Duration, Cost::Unit),
    binary(op::SUBTRACT, &[T::Uint, T::Uint], T::Uint, Cost::Unit),
    binary(op::INDEX, &[LIST_A, T::Int], T::A, Cost::IndexList),
    binary(op::INDEX, &[MAP_AB, T::A], T::B, Cost::IndexMap),
    binary(op::INDEX, &[T::Optional(&LIST_A), T::Int], T::Optional(&T::A), Cost::Unit),
    binary(op::INDEX, &[T::Optional(&MAP_AB), T::A], T::Optional(&T::B), Cost::Unit),
    binary(op::OPT_INDEX, &[LIST_A, T::Int], T::Optional(&T::A), Cost::Unit),
    binary(op::OPT_INDEX, &[T::Optional(&LIST_A), T::Int], T::Optional(&T::A), Cost::Unit),
    binary(op::OPT_INDEX, &[MAP_AB, T::A], T::Optional(&T::B), Cost::Unit),
    binary(op::OPT_INDEX, &[T::Optional(&MAP_AB), T::A], T::Optional(&T::B), Cost::Unit),
    binary(op::IN, &[T::A, LIST_A], T::Bool, Cost::InList),
    binary(op::IN, &[T::A, MAP_AB], T::Bool, Cost::Unit),
    binary(op::MAP_INSERT, &[MAP_AB, T::A, T::B], MAP_AB, Cost::Unit),
    binary(op::MAP_INSERT, &[MAP_AB, MAP_AB], MAP_AB, Cost::Unit),
];

pub(super) static RELATIONS: [&[Overload]; 4] = [&LESS, &LESS_EQUALS, &GREATER, &GREATER_EQUALS];
