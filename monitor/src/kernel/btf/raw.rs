//! The bytes of BTF: header, type records and strings, all bounds-checked.
//!
//! Layout and limits are those of `include/uapi/linux/btf.h`.

use std::ops::Range;

use super::BtfError;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Header up to and including `str_len`; later kernels may append to it.
const HEADER: usize = 24;
/// `name_off`, `info`, and `size` or `type`, 4 bytes each.
const RECORD: usize = 12;
/// `name_off`, `type` and `offset`, 4 bytes each.
const MEMBER: usize = 12;

/// A kind of type, `BTF_KIND_*`; kinds that are never looked up are [`Other`](Self::Other).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BtfKind {
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    /// Typedef, volatile, const, restrict, type tag.
    Modifier,
    Func,
    FuncProto,
    Enum64,
    Other,
}

impl BtfKind {
    /// The kind, and how many bytes follow its record: a fixed number and one
    /// per element. `None` if unknown.
    fn from_raw(kind: u32) -> Option<(Self, usize, usize)> {
        Some(match kind {
            1 => (Self::Int, 4, 0),
            2 => (Self::Ptr, 0, 0),
            3 => (Self::Array, 12, 0),
            4 => (Self::Struct, 0, MEMBER),
            5 => (Self::Union, 0, MEMBER),
            6 => (Self::Enum, 0, 8),
            7 => (Self::Other, 0, 0), // forward declaration
            8..=11 | 18 => (Self::Modifier, 0, 0),
            12 => (Self::Func, 0, 0), // its vlen is the linkage
            13 => (Self::FuncProto, 0, 8),
            14 | 17 => (Self::Other, 4, 0), // variable, declaration tag
            15 => (Self::Other, 0, 12),     // data section
            16 => (Self::Other, 0, 0),      // float
            19 => (Self::Enum64, 0, 12),
            _ => return None,
        })
    }
}

/// One record of the type section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    /// The type id, from 1.
    pub(super) id: u32,
    pub(super) kind: BtfKind,
    pub(super) name_off: u32,
    /// The size in bytes or a type id, depending on the kind.
    pub(super) size_or_type: u32,
    /// Meaning depends on the kind: bitfields present, or enum is signed.
    flag: bool,
    /// Bytes of this record's tail: start in the data, length.
    tail: (usize, usize),
}

impl Type {
    pub(super) fn is_aggregate(self) -> bool {
        matches!(self.kind, BtfKind::Struct | BtfKind::Union)
    }

    pub(super) fn is_modifier(self) -> bool {
        self.kind == BtfKind::Modifier
    }

    /// Whether [`Raw::named`] finds it.
    const fn is_named(self) -> bool {
        matches!(self.kind, BtfKind::Struct | BtfKind::Func | BtfKind::Modifier)
    }
}

/// One member of a struct or union.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) name_off: u32,
    pub(super) type_id: u32,
    pub(super) bit_offset: u32,
    pub(super) is_bitfield: bool,
}

/// The data with its sections found and its types indexed.
pub(super) struct Raw {
    data: Vec<u8>,
    strings: Range<usize>,
    /// The start in `data` of the record of type id `i + 1`.
    records: Vec<u32>,
    /// Fingerprints of names, for types of the kinds that are looked up by name.
    names: Vec<u32>,
}

impl Raw {
    pub(super) fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let header = data.get(..4).ok_or(BtfError::Truncated("header"))?;
        let magic = u16::from_le_bytes([header[0], header[1]]);
        if magic == MAGIC.swap_bytes() {
            return Err(BtfError::BigEndian);
        }
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        if header[2] != VERSION {
            return Err(BtfError::Version(header[2]));
        }
        let types = section(&data, 8).ok_or(BtfError::Truncated("type section"))?;
        let strings = section(&data, 16).ok_or(BtfError::Truncated("string section"))?;
        match data.get(strings.clone()) {
            Some([0] | [0, .., 0]) => {}
            _ => return Err(BtfError::Strings),
        }
        let mut raw = Self { data, strings, records: Vec::new(), names: Vec::new() };
        raw.index(types)?;
        Ok(raw)
    }

    /// Walks the type section and notes where each record starts.
    fn index(&mut self, types: Range<usize>) -> Result<(), BtfError> {
        let truncated = BtfError::Truncated("type section");
        let mut at = types.start;
        let mut id = 1;
        while at < types.end {
            let Ok(start) = u32::try_from(at) else {
                return Err(truncated);
            };
            let Some(info) = word(&self.data, at + 4).filter(|_| at + RECORD <= types.end) else {
                return Err(truncated);
            };
            let Some(ty) = self.record(at, id) else {
                let kind = kind_of(info);
                return Err(BtfError::Kind { id, kind });
            };
            at = ty.tail.0 + ty.tail.1;
            if at > types.end {
                return Err(truncated);
            }
            self.records.push(start);
            self.names.push(if ty.is_named() {
                fingerprint(self.string_from(ty.name_off))
            } else {
                NAMELESS
            });
            id += 1;
        }
        self.records.shrink_to_fit();
        self.names.shrink_to_fit();
        Ok(())
    }

    /// The record at a byte offset; `None` if out of bounds or of unknown kind.
    fn record(&self, at: usize, id: u32) -> Option<Type> {
        let info = word(&self.data, at + 4)?;
        let (kind, fixed, each) = BtfKind::from_raw(kind_of(info))?;
        Some(Type {
            id,
            kind,
            name_off: word(&self.data, at)?,
            size_or_type: word(&self.data, at + 8)?,
            flag: info >> 31 == 1,
            // At most 2^24 * 12, so this cannot overflow.
            tail: (at + RECORD, fixed + each * vlen_of(info)),
        })
    }

    /// The type with this id; `None` for 0 (`void`) and beyond the last.
    pub(super) fn by_id(&self, id: u32) -> Option<Type> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        let at = usize::try_from(*self.records.get(index)?).ok()?;
        self.record(at, id)
    }

    /// The number of types.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The largest number of members that have room in the data.
    pub(super) fn most_members(&self) -> usize {
        self.data.len() / MEMBER
    }

    /// The types that may have this name, in order of their ids: structs, functions and
    /// what modifies a type.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = Type> {
        // Compared by the block, which takes the processor an instruction for several.
        const BLOCK: usize = 64;
        let wanted = fingerprint(name.as_bytes());
        let blocks = (0..).step_by(BLOCK).zip(self.names.chunks(BLOCK));
        let hits = blocks.filter(move |(_, block)| block.iter().fold(false, |hit, at| hit | (*at == wanted)));
        let places = hits.flat_map(|(start, block)| (start..).zip(block));
        places.filter(move |(_, print)| **print == wanted).filter_map(|(at, _)| self.by_id(at + 1))
    }

    /// All types in order of their ids.
    pub(super) fn types(&self) -> impl Iterator<Item = Type> {
        (1..).map_while(|id| self.by_id(id))
    }

    /// The members of a struct or union.
    pub(super) fn members(&self, ty: Type) -> impl Iterator<Item = Member> {
        self.elements(ty).map(move |&[name_off, type_id, offset]| {
            let offset = u32::from_le_bytes(offset);
            // With the flag, the top 8 bits are the bitfield's width.
            let (bit_offset, width) =
                if ty.flag { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            Member {
                name_off: u32::from_le_bytes(name_off),
                type_id: u32::from_le_bytes(type_id),
                bit_offset,
                is_bitfield: width != 0,
            }
        })
    }

    /// Type id of an array's elements.
    pub(super) fn element_type(&self, ty: Type) -> Option<u32> {
        let mut fixed = self.elements(ty).filter(|_| ty.kind == BtfKind::Array);
        fixed.next().map(|&[element, _index, _count]| u32::from_le_bytes(element))
    }

    /// Type ids of a prototype's parameters; a closing `...` has id 0.
    pub(super) fn param_types(&self, ty: Type) -> impl DoubleEndedIterator<Item = u32> {
        self.elements(ty).map(|&[_name, type_id]| u32::from_le_bytes(type_id))
    }

    /// Value of an enum's variant; `Some(None)` if it is there but exceeds `i64`.
    pub(super) fn variant(&self, ty: Type, name: &str) -> Option<Option<i64>> {
        let named = |name_off| self.name_is(u32::from_le_bytes(name_off), name);
        if ty.kind == BtfKind::Enum {
            let [_, value] = self.elements(ty).find(|&&[name_off, _]| named(name_off))?;
            let value = u32::from_le_bytes(*value);
            let signed = i64::from(value.cast_signed());
            return Some(Some(if ty.flag { signed } else { i64::from(value) }));
        }
        let [_, low, high] = self.elements(ty).find(|&&[name_off, _, _]| named(name_off))?;
        let (low, high) = (u32::from_le_bytes(*low), u32::from_le_bytes(*high));
        let value = u64::from(high) << 32 | u64::from(low);
        Some(if ty.flag { Some(value.cast_signed()) } else { i64::try_from(value).ok() })
    }

    /// Whether an integer has no bit offset and as many bits as its storage.
    pub(super) fn int_fills_storage(&self, ty: Type) -> bool {
        self.elements(ty).all(|&[encoding]| {
            let encoding = u32::from_le_bytes(encoding);
            let (offset, bits) = (encoding >> 16 & 0xff, encoding & 0xff);
            offset == 0 && u64::from(bits) == u64::from(ty.size_or_type) * 8
        })
    }

    /// Whether the string at `offset` is `name`. Nothing is named `""`.
    pub(super) fn name_is(&self, offset: u32, name: &str) -> bool {
        let text = self.string_from(offset);
        // The rest of the section holds other strings behind the NUL.
        text.get(name.len()) == Some(&0)
            && text.starts_with(name.as_bytes())
            && !name.is_empty()
            && !name.contains('\0')
    }

    pub(super) fn is_unnamed(&self, offset: u32) -> bool {
        self.string_from(offset).first() == Some(&0)
    }

    /// The string section from `offset` on; empty if that is beyond its end.
    fn string_from(&self, offset: u32) -> &[u8] {
        let strings = self.data.get(self.strings.clone()).unwrap_or_default();
        usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or_default()
    }

    /// The words after a record, little-endian, as elements of `N` words.
    fn elements<const N: usize>(&self, ty: Type) -> impl DoubleEndedIterator<Item = &[[u8; 4]; N]> {
        let (start, len) = ty.tail;
        let tail = self.data.get(start..start + len).unwrap_or_default();
        tail.as_chunks::<4>().0.as_chunks::<N>().0.iter()
    }
}

/// The value in place of the fingerprint of a type that is not looked up by name. A name may have
/// it, too: it is only a first sieve.
const NAMELESS: u32 = 0;

/// A hash (FNV-1a) of the bytes before the first NUL.
fn fingerprint(text: &[u8]) -> u32 {
    let bytes = text.iter().take_while(|byte| **byte != 0);
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// A section, from the offset and length found at `at` in the header. Offsets
/// count from the end of the header.
fn section(data: &[u8], at: usize) -> Option<Range<usize>> {
    let word = |at| usize::try_from(word(data, at)?).ok();
    let header = word(4)?;
    if header < HEADER {
        return None;
    }
    let start = header.checked_add(word(at)?)?;
    let end = start.checked_add(word(at + 4)?)?;
    (end <= data.len()).then_some(start..end)
}

/// Bits 24..=30 of `info`. The top two are unused yet: if set, the kind is
/// unknown, which is an error and better than a wrong guess.
const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x7f
}

/// Bits 0..=23 of `info`, the number of elements. The top eight are unused yet.
const fn vlen_of(info: u32) -> usize {
    (info & 0x00ff_ffff) as usize
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
