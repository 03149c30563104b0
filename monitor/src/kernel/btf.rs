//! A minimal reader of BTF, the type information a kernel carries in
//! `/sys/kernel/btf/vmlinux` (format: the kernel's `Documentation/bpf/btf.rst`).
//!
//! It answers few questions about the running kernel: where a struct member lies, whether a
//! function or struct exists, what an enum variant's value is. It reads a whole, little-endian
//! BTF of version 1; not module BTF, whose ids continue those of vmlinux.
//!
//! The input is not trusted. Every read is bounds-checked, every walk over type
//! references has a limit, and allocation follows the bytes really present.

mod raw;

use std::fmt;

use thiserror::Error;

use self::raw::{BtfKind, Member, Type};

/// Longest chain of typedefs and qualifiers followed; real ones have under 10.
const MAX_MODIFIERS: usize = 64;

/// Most members looked at to find one name. The largest kernel struct,
/// unnamed members included, has some hundreds.
const MAX_MEMBERS: usize = 1 << 17;

/// Why BTF could not be read, or a question to it had no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The data ends inside the part named.
    #[error("BTF is truncated in its {0}")]
    Truncated(&'static str),
    /// The magic number is not BTF's.
    #[error("not BTF: magic is {0:#06x}, expected 0xeb9f")]
    Magic(u16),
    /// The BTF was made on a big-endian machine.
    #[error("BTF is big-endian; only little-endian is supported")]
    BigEndian,
    /// The header has another version than 1.
    #[error("BTF version {0} is not supported, expected 1")]
    Version(u8),
    /// The string section does not begin and end with NUL.
    #[error("BTF string section does not begin and end with NUL")]
    Strings,
    /// A type has a kind this reader does not know, so its size is unknown.
    #[error("BTF type {id} has unknown kind {kind}")]
    Kind {
        /// The type id, from 1.
        id: u32,
        /// The kind that was found.
        kind: u32,
    },
    /// A reference names a type that does not exist.
    #[error("BTF refers to type {0}, which does not exist")]
    NoType(u32),
    /// A chain of types is too long to be real; probably a loop.
    #[error("BTF type {0} is nested too deeply, or contains itself")]
    TooDeep(u32),
    /// No struct of that name is defined.
    #[error("kernel has no struct {0}")]
    NoStruct(String),
    /// The struct has no such member, also not in unnamed structs and unions.
    #[error("struct {root} has no member {path}")]
    NoMember {
        /// Struct the path starts from.
        root: String,
        /// Path up to the member that is missing.
        path: String,
    },
    /// The path continues behind a pointer, which is not followed.
    #[error("struct {root}: {path} is a pointer; a path cannot go through it")]
    Pointer {
        /// Struct the path starts from.
        root: String,
        /// Path up to the pointer.
        path: String,
    },
    /// The path continues behind a member that is no struct or union.
    #[error("struct {root}: {path} is neither struct nor union, so it has no members")]
    NotAggregate {
        /// Struct the path starts from.
        root: String,
        /// Path up to that member.
        path: String,
    },
    /// The member is a bitfield, which has no byte offset.
    #[error("struct {root}: {path} is a bitfield; it has no byte offset")]
    Bitfield {
        /// Struct the path starts from.
        root: String,
        /// Path up to the bitfield.
        path: String,
    },
    /// The offset in bytes does not fit 32 bits.
    #[error("struct {root}: the offset of {path} does not fit 32 bits")]
    Offset {
        /// Struct the path starts from.
        root: String,
        /// Path up to that member.
        path: String,
    },
}

/// Parsed BTF. It holds the bytes it was given and 8 bytes per type (some 7 MB for a
/// distribution's vmlinux), so drop it once the questions are answered.
pub struct Btf {
    raw: raw::Raw,
}

impl Btf {
    /// Checks the header and indexes the types. One pass over the type section.
    ///
    /// # Errors
    ///
    /// If the bytes are not little-endian BTF version 1, are truncated, or
    /// hold a type of unknown kind. References are checked when followed.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let raw = raw::Raw::parse(bytes)?;
        Ok(Self { raw })
    }

    /// Offset in bytes of a member from the start of `struct struct_name`.
    ///
    /// `path` names members joined by dots, as in C: `css.cgroup`. Members of
    /// unnamed structs and unions belong to the enclosing one. Typedefs and
    /// qualifiers are looked through; pointers are not followed. If several
    /// structs have the name, the first counts; forward declarations do not.
    ///
    /// # Errors
    ///
    /// [`BtfError::NoStruct`] and [`BtfError::NoMember`] if this kernel has no
    /// such member; [`BtfError::Pointer`], [`BtfError::NotAggregate`],
    /// [`BtfError::Bitfield`] if the path has no offset; others if the BTF is
    /// malformed.
    pub fn member_offset(&self, struct_name: &str, path: &str) -> Result<u32, BtfError> {
        let Some(mut container) = self.find(struct_name, is_struct) else {
            return Err(BtfError::NoStruct(struct_name.to_owned()));
        };
        let mut bits = 0_u64;
        let mut seen = 0;
        let mut parts = path.split('.').peekable();
        while let Some(name) = parts.next() {
            seen += name.len();
            // Whole names and the dots between them.
            let so_far = || {
                let root = struct_name.to_owned();
                (root, path.get(..seen).unwrap_or(path).to_owned())
            };
            let Some((member, at)) = self.find_member(container, name)? else {
                let (root, path) = so_far();
                return Err(BtfError::NoMember { root, path });
            };
            let ty = self.resolve(member.type_id)?;
            if member.is_bitfield || at % 8 != 0 || ty.is_some_and(|ty| self.is_bitfield_int(ty)) {
                let (root, path) = so_far();
                return Err(BtfError::Bitfield { root, path });
            }
            bits += at;
            if parts.peek().is_some() {
                let (root, path) = so_far();
                container = match ty {
                    Some(ty) if ty.is_aggregate() => ty,
                    Some(ty) if ty.kind == BtfKind::Ptr => {
                        return Err(BtfError::Pointer { root, path });
                    }
                    _ => return Err(BtfError::NotAggregate { root, path }),
                };
            }
            seen += 1;
        }
        u32::try_from(bits / 8)
            .map_err(|_| BtfError::Offset { root: struct_name.to_owned(), path: path.to_owned() })
    }

    /// Offset in bits of a member, which may be a bitfield, from the start of
    /// `struct struct_name`. Members of unnamed structs and unions belong to it, too.
    ///
    /// # Errors
    ///
    /// [`BtfError::NoStruct`] and [`BtfError::NoMember`] if this kernel has no such member.
    pub fn member_bit_offset(&self, struct_name: &str, member: &str) -> Result<u32, BtfError> {
        let container =
            self.find(struct_name, is_struct).ok_or_else(|| BtfError::NoStruct(struct_name.to_owned()))?;
        let named = || (struct_name.to_owned(), member.to_owned());
        let Some((_, bits)) = self.find_member(container, member)? else {
            let (root, path) = named();
            return Err(BtfError::NoMember { root, path });
        };
        u32::try_from(bits).map_err(|_| {
            let (root, path) = named();
            BtfError::Offset { root, path }
        })
    }

    /// Size in bytes of `struct name`.
    #[must_use]
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        self.find(name, is_struct).map(|ty| ty.size_or_type)
    }

    /// Whether a member of `struct struct_name` is an array of `struct element`.
    #[must_use]
    pub fn is_array_of(&self, struct_name: &str, member: &str, element: &str) -> bool {
        let found = self.find(struct_name, is_struct).and_then(|container| {
            let (member, _) = self.find_member(container, member).ok()??;
            let array = self.resolve(member.type_id).ok()??;
            self.resolve(self.raw.element_type(array)?).ok()?
        });
        found.is_some_and(|ty| is_struct(&ty) && self.raw.name_is(ty.name_off, element))
    }

    /// Whether the kernel defines `struct name` (a forward declaration is no
    /// definition).
    #[must_use]
    pub fn has_struct(&self, name: &str) -> bool {
        self.find(name, is_struct).is_some()
    }

    /// Whether BTF describes a function `name`. pahole leaves out functions that
    /// were inlined or optimized so that their arguments are not where the ABI
    /// puts them.
    #[must_use]
    pub fn has_func(&self, name: &str) -> bool {
        self.find(name, is_func).is_some()
    }

    /// The type id of function `name`, by which the kernel identifies a program's function.
    #[must_use]
    pub fn func_id(&self, name: &str) -> Option<u32> {
        self.find(name, is_func).map(|func| func.id)
    }

    /// Whether BTF has a typedef `name`; each tracepoint has one, `btf_trace_NAME`.
    #[must_use]
    pub fn has_typedef(&self, name: &str) -> bool {
        self.find(name, is_typedef).is_some()
    }

    /// Number of arguments of function `name`, a closing `...` not counted.
    /// `None` if there is no such function or its prototype is malformed.
    #[must_use]
    pub fn func_arg_count(&self, name: &str) -> Option<usize> {
        let func = self.find(name, is_func)?;
        let proto = self.raw.by_id(func.size_or_type)?;
        if proto.kind != BtfKind::FuncProto {
            return None;
        }
        let variadic = self.raw.param_types(proto).next_back() == Some(0);
        Some(self.raw.param_types(proto).count() - usize::from(variadic))
    }

    /// Value of `variant` in `enum enum_name`; an `enum_name` of `""` searches
    /// the enums without a name. If several match, the first counts.
    ///
    /// `None` if there is none, or if its value exceeds `i64::MAX`. A 32-bit
    /// enum is signed only if BTF says so (kind_flag); where an older producer
    /// left that out, -1 reads as `u32::MAX`.
    #[must_use]
    pub fn enum_value(&self, enum_name: &str, variant: &str) -> Option<i64> {
        let matches = |ty: &Type| {
            matches!(ty.kind, BtfKind::Enum | BtfKind::Enum64)
                && if enum_name.is_empty() {
                    self.raw.is_unnamed(ty.name_off)
                } else {
                    self.raw.name_is(ty.name_off, enum_name)
                }
        };
        let mut enums = self.raw.types().filter(matches);
        enums.find_map(|ty| self.raw.variant(ty, variant))?
    }

    /// The first type of that name that `wanted` approves.
    fn find(&self, name: &str, wanted: fn(&Type) -> bool) -> Option<Type> {
        let mut types = self.raw.named(name);
        types.find(|ty| wanted(ty) && self.raw.name_is(ty.name_off, name))
    }

    /// The member `name` of a struct or union and its offset in bits, unnamed
    /// members searched too.
    fn find_member(&self, container: Type, name: &str) -> Result<Option<(Member, u64)>, BtfError> {
        // A work list, not recursion: the nesting depth is the input's choice.
        let mut todo = vec![(container, 0)];
        let mut budget = MAX_MEMBERS;
        while let Some((ty, base)) = todo.pop() {
            for member in self.raw.members(ty) {
                budget = budget.checked_sub(1).ok_or(BtfError::TooDeep(container.id))?;
                let at = base + u64::from(member.bit_offset);
                if self.raw.name_is(member.name_off, name) {
                    return Ok(Some((member, at)));
                }
                if self.raw.is_unnamed(member.name_off)
                    && let Some(inner) = self.resolve(member.type_id)?
                    && inner.is_aggregate()
                {
                    // On a way down no type comes twice unless it contains itself,
                    // so what waits is never more than all members there are.
                    if todo.len() >= self.raw.most_members() {
                        return Err(BtfError::TooDeep(container.id));
                    }
                    todo.push((inner, at));
                }
            }
        }
        Ok(None)
    }

    /// Looks through typedefs and qualifiers; `None` is `void`.
    fn resolve(&self, id: u32) -> Result<Option<Type>, BtfError> {
        let mut next = id;
        for _ in 0..MAX_MODIFIERS {
            if next == 0 {
                return Ok(None);
            }
            let ty = self.raw.by_id(next).ok_or(BtfError::NoType(next))?;
            if !ty.is_modifier() {
                return Ok(Some(ty));
            }
            next = ty.size_or_type;
        }
        Err(BtfError::TooDeep(id))
    }

    /// The older way to say bitfield: an integer narrower than its storage.
    fn is_bitfield_int(&self, ty: Type) -> bool {
        ty.kind == BtfKind::Int && !self.raw.int_fills_storage(ty)
    }
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("types", &self.raw.len()).finish_non_exhaustive()
    }
}

fn is_struct(ty: &Type) -> bool {
    ty.kind == BtfKind::Struct
}

fn is_typedef(ty: &Type) -> bool {
    // Of modifiers, only typedefs and tags have names, and no tag has a name that is looked up.
    ty.is_modifier()
}

fn is_func(ty: &Type) -> bool {
    ty.kind == BtfKind::Func
}

#[cfg(test)]
mod tests;
