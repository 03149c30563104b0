//! Tests with hand-built BTF, broken BTF, and the running kernel's if it shows one.

use std::time::Instant;

use proptest::prelude::*;

use super::*;

const INT: u32 = 1;
const PTR: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const ENUM64: u32 = 19;
/// kind_flag, a bit beside the kind.
const FLAG: u32 = 0x80;

/// Writes BTF: types in the order of the calls, ids from 1.
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], count: 0 }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).expect("small");
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    /// Adds a type with a tail of `words`, `vlen` elements. Returns its id.
    fn ty(&mut self, kind: u32, name: &str, size_or_type: u32, vlen: u32, words: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, kind << 24 | vlen, size_or_type].iter().chain(words) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn int(&mut self, name: &str, size: u32) -> u32 {
        self.ty(INT, name, size, 0, &[size * 8])
    }

    /// Adds a struct or union; members are (name, type, offset in bits or with the width on top).
    fn aggregate(&mut self, kind: u32, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        let vlen = u32::try_from(members.len()).expect("small");
        let words: Vec<u32> =
            members.iter().flat_map(|&(name, ty, offset)| [self.string(name), ty, offset]).collect();
        self.ty(kind, name, 0, vlen, &words)
    }

    fn build(&self) -> Vec<u8> {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("small");
        let (types, strings) = (len(&self.types), len(&self.strings));
        let mut out = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, strings] {
            out.extend(u32::to_le_bytes(word));
        }
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }

    fn parse(&self) -> Btf {
        Btf::parse(self.build()).expect("well-formed")
    }
}

/// Builds a small kernel: the shapes of the structs that are looked up.
fn kernel() -> Builder {
    let mut b = Builder::new();
    let long = b.int("long", 8);
    let atomic = b.aggregate(STRUCT, "", &[("counter", long, 0)]);
    let atomic = b.ty(TYPEDEF, "atomic_long_t", atomic, 0, &[]);
    b.ty(FWD, "page_counter", 0, 0, &[]);
    let parent = b.ty(PTR, "", 7, 0, &[]);
    let inner = b.aggregate(STRUCT, "", &[("low", long, 0), ("failcnt", long, 64)]);
    let members = [("usage", atomic, 0), ("parent", parent, 128), ("", inner, 192)];
    let counter = b.aggregate(STRUCT, "page_counter", &members);
    assert_eq!(counter, 7);
    let qualified = b.ty(CONST, "", counter, 0, &[]);
    let qualified = b.ty(VOLATILE, "", qualified, 0, &[]);
    let choice = b.aggregate(UNION, "", &[("swap", counter, 0), ("memsw", qualified, 0)]);
    let nested = b.aggregate(STRUCT, "", &[("", choice, 32 * 8)]);
    let members = [("memory", counter, 64), ("", nested, 512), ("ptr", parent, 2048)];
    b.aggregate(STRUCT, "mem_cgroup", &members);
    // The flag: `bits` is 3 wide at bit 5, `plain` lies at byte 4.
    let members = [("bits", long, 3 << 24 | 5), ("plain", long, 32)];
    b.aggregate(STRUCT | FLAG, "flagged", &members);
    let narrow = b.ty(INT, "narrow", 4, 0, &[3]);
    b.aggregate(STRUCT, "legacy", &[("bits", narrow, 0), ("odd", long, 4)]);
    // A second struct of a name already taken.
    b.aggregate(STRUCT, "page_counter", &[("usage", long, 640)]);
    let proto = b.ty(FUNC_PROTO, "", long, 2, &[0, parent, 0, long]);
    b.ty(FUNC, "page_counter_try_charge", proto, 1, &[]);
    let variadic = b.ty(FUNC_PROTO, "", 0, 2, &[0, parent, 0, 0]);
    b.ty(FUNC, "printk", variadic, 1, &[]);
    b.ty(FUNC, "not_a_proto", long, 1, &[]);
    let names = ["NR_A", "NR_B"].map(|name| b.string(name));
    b.ty(ENUM, "items", 4, 2, &[names[0], 3, names[1], u32::MAX]);
    b.ty(ENUM | FLAG, "signed", 4, 1, &[names[1], u32::MAX]);
    let names = ["ANON", "WIDE", "HUGE"].map(|name| b.string(name));
    b.ty(ENUM, "", 4, 1, &[names[0], 7]);
    let wide = [names[1], 1, 2, names[2], 0, 1 << 31];
    b.ty(ENUM64, "wide", 8, 2, &wide);
    b.ty(ENUM64 | FLAG, "wide_signed", 8, 2, &wide);
    b
}

#[test]
fn member_offsets_follow_paths_and_unnamed_members() {
    let btf = kernel().parse();
    let offset = |name, path| btf.member_offset(name, path);
    assert_eq!(offset("page_counter", "usage"), Ok(0), "not the second struct");
    assert_eq!(offset("page_counter", "usage.counter"), Ok(0));
    assert_eq!(offset("page_counter", "parent"), Ok(16));
    assert_eq!(offset("page_counter", "failcnt"), Ok(32));
    assert_eq!(offset("mem_cgroup", "memory"), Ok(8));
    assert_eq!(offset("mem_cgroup", "memory.parent"), Ok(24));
    assert_eq!(offset("mem_cgroup", "memory.failcnt"), Ok(40));
    assert_eq!(offset("mem_cgroup", "swap"), Ok(96));
    assert_eq!(offset("mem_cgroup", "memsw.parent"), Ok(112));
    assert_eq!(offset("flagged", "plain"), Ok(4));
}

#[test]
fn a_bitfield_has_an_offset_in_bits() {
    let btf = kernel().parse();
    let offset = |name, member| btf.member_bit_offset(name, member);
    assert_eq!(offset("flagged", "bits"), Ok(5));
    assert_eq!(offset("flagged", "plain"), Ok(32));
    assert_eq!(offset("legacy", "odd"), Ok(4));
    assert_eq!(offset("mem_cgroup", "swap"), Ok(96 * 8));
    assert_eq!(offset("nothing", "bits"), Err(BtfError::NoStruct("nothing".into())));
    let (root, path) = ("flagged".into(), "nope".into());
    assert_eq!(offset("flagged", "nope"), Err(BtfError::NoMember { root, path }));
}

#[test]
fn paths_without_an_offset_have_a_reason() {
    let btf = kernel().parse();
    let message = |name, path| {
        let err = btf.member_offset(name, path).expect_err("refused");
        err.to_string()
    };
    assert_eq!(message("nothing", "usage"), "kernel has no struct nothing");
    assert_eq!(message("", "usage"), "kernel has no struct ");
    assert_eq!(message("mem_cgroup", "memory.nope.x"), "struct mem_cgroup has no member memory.nope");
    assert_eq!(
        message("mem_cgroup", "memory.parent.usage"),
        "struct mem_cgroup: memory.parent is a pointer; a path cannot go through it"
    );
    assert!(message("mem_cgroup", "memory.failcnt.x").contains("memory.failcnt is neither"));
    for (name, path) in [("flagged", "bits"), ("legacy", "bits"), ("legacy", "odd")] {
        assert!(message(name, path).ends_with("is a bitfield; it has no byte offset"));
    }
    for path in ["", ".", "memory.", ".memory", "memory..usage", "usage\0parent"] {
        let err = btf.member_offset("mem_cgroup", path);
        assert!(matches!(err, Err(BtfError::NoMember { .. })), "{path:?}");
    }
}

#[test]
fn the_first_of_a_name_is_found_among_thousands() {
    let mut builder = Builder::new();
    let named: Vec<_> = (0..1000).map(|number| builder.ty(FUNC, &format!("f{number}"), 0, 0, &[])).collect();
    builder.ty(FUNC, "f999", 0, 0, &[]);
    let btf = builder.parse();
    for at in [0, 63, 64, 999] {
        assert_eq!(btf.func_id(&format!("f{at}")), Some(named[at]));
    }
    assert_eq!(btf.func_id("f1000"), None);
}

#[test]
fn functions_structs_and_enums_are_found_by_name() {
    let btf = kernel().parse();
    assert!(btf.has_func("printk") && btf.has_struct("mem_cgroup"));
    for name in ["", "print", "printk\0", "mem_cgroup", "page_counter_try_charge_"] {
        assert!(!btf.has_func(name), "{name:?}");
    }
    assert!(!btf.has_struct("atomic_long_t") && !btf.has_struct("printk"));
    assert!(btf.func_id("printk").is_some() && btf.func_id("mem_cgroup").is_none());
    assert_eq!(btf.func_arg_count("page_counter_try_charge"), Some(2));
    assert_eq!(btf.func_arg_count("printk"), Some(1));
    assert_eq!(btf.func_arg_count("not_a_proto"), None);
    assert_eq!(btf.func_arg_count("nothing"), None);
    assert_eq!(btf.enum_value("items", "NR_A"), Some(3));
    assert_eq!(btf.enum_value("items", "NR_B"), Some(i64::from(u32::MAX)));
    assert_eq!(btf.enum_value("items", "ANON"), None);
    assert_eq!(btf.enum_value("signed", "NR_B"), Some(-1));
    assert_eq!(btf.enum_value("", "ANON"), Some(7));
    assert_eq!(btf.enum_value("", "NR_A"), None);
    assert_eq!(btf.enum_value("wide", "WIDE"), Some((2 << 32) + 1));
    assert_eq!(btf.enum_value("wide", "HUGE"), None);
    assert_eq!(btf.enum_value("wide_signed", "HUGE"), Some(i64::MIN));
}

#[test]
fn loops_and_dangling_references_are_errors() {
    let mut b = Builder::new();
    b.ty(TYPEDEF, "loop", 1, 0, &[]);
    // Type 2 contains itself twice, unnamed: exponential if walked naively.
    b.aggregate(STRUCT, "nest", &[("", 2, 0), ("", 2, 64)]);
    let members = [("loop", 1, 0), ("dangling", 99, 0), ("void", 0, 0)];
    b.aggregate(STRUCT, "bad", &members);
    let btf = b.parse();
    assert_eq!(btf.member_offset("bad", "loop"), Err(BtfError::TooDeep(1)));
    assert_eq!(btf.member_offset("bad", "dangling"), Err(BtfError::NoType(99)));
    assert_eq!(btf.member_offset("bad", "void"), Ok(0));
    assert_eq!(btf.member_offset("nest", "x"), Err(BtfError::TooDeep(2)));
}

/// The bound on pending types is one for types that contain themselves only.
#[test]
fn unnamed_types_may_be_shared() {
    let mut b = Builder::new();
    let int = b.int("int", 4);
    let mut inner = b.aggregate(UNION, "", &[("x", int, 32)]);
    for _ in 0..6 {
        inner = b.aggregate(STRUCT, "", &[("", inner, 0), ("", inner, 64), ("", inner, 128)]);
    }
    b.aggregate(STRUCT, "nest", &[("", inner, 0), ("last", int, 1 << 12)]);
    let btf = b.parse();
    assert_eq!(btf.member_offset("nest", "last"), Ok(512));
    assert_eq!(btf.member_offset("nest", "none").map_err(|error| error.to_string()), {
        Err("struct nest has no member none".to_owned())
    });
    assert!(btf.member_offset("nest", "x").is_ok());
}

#[test]
fn what_is_not_btf_is_refused() {
    let good = kernel().build();
    let refused = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        Btf::parse(bytes).expect_err("refused")
    };
    assert_eq!(refused(Vec::clear), BtfError::Truncated("header"));
    assert_eq!(refused(|b| b[..2].copy_from_slice(b"\x7fE")), BtfError::Magic(0x457f));
    assert_eq!(refused(|b| b.swap(0, 1)), BtfError::BigEndian);
    assert_eq!(refused(|b| b[2] = 2), BtfError::Version(2));
    assert_eq!(refused(|b| b[4] = 23), BtfError::Truncated("type section"));
    assert_eq!(refused(|b| b[12] -= 4), BtfError::Truncated("type section"));
    assert_eq!(refused(|b| b[15] = 0xff), BtfError::Truncated("type section"));
    assert_eq!(refused(|b| b.truncate(b.len() - 1)), BtfError::Truncated("string section"));
    assert_eq!(refused(|b| *b.last_mut().expect("bytes") = 1), BtfError::Strings);
    assert_eq!(refused(|b| b[31] = 20), BtfError::Kind { id: 1, kind: 20 });
    assert_eq!(refused(|b| b[31] = 0), BtfError::Kind { id: 1, kind: 0 });
}

#[test]
fn a_longer_header_and_an_empty_type_section_are_fine() {
    let mut bytes = kernel().build();
    bytes[4] = 32;
    bytes.splice(24..24, [0xaa; 8]);
    assert!(Btf::parse(bytes).expect("32-byte header").has_func("printk"));
    let empty = Builder::new().parse();
    assert!(!empty.has_func("printk"));
    assert_eq!(format!("{empty:?}"), "Btf { types: 0, .. }");
}

#[test]
fn the_running_kernels_btf_is_understood() {
    // Not every host has it; where it is absent there is nothing to compare.
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        return;
    };
    let start = Instant::now();
    let btf = Btf::parse(bytes).expect("the kernel's own BTF");
    println!("{btf:?} parsed in {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(btf.member_offset("page_counter", "usage"), Ok(0));
    assert!(btf.has_func("page_counter_try_charge"));
    assert_eq!(btf.func_arg_count("page_counter_try_charge"), Some(3));
    for (name, path) in [
        ("mem_cgroup", "memory"),
        ("mem_cgroup", "memory.usage"),
        ("mem_cgroup", "css.cgroup"),
        ("page_counter", "parent"),
        ("cgroup_subsys_state", "cgroup"),
        ("cgroup", "kn"),
        ("kernfs_node", "id"),
        ("file", "f_op"),
        ("file", "private_data"),
    ] {
        let offset = btf.member_offset(name, path);
        println!("{name}.{path}: {offset:?}");
        assert!(offset.is_ok_and(|offset| offset < 1 << 16), "{name}.{path}");
    }
    let count = ["f_ref", "f_count"].map(|path| btf.member_offset("file", path));
    assert!(count.iter().any(Result::is_ok), "{count:?}");
    assert!(btf.enum_value("memcg_memory_event", "MEMCG_OOM").is_some());
    println!("queried in {:?}", start.elapsed());
}

/// Makes every query, whatever the answers.
fn query_everything(bytes: Vec<u8>) {
    let Ok(btf) = Btf::parse(bytes) else {
        return;
    };
    let names = ["", "page_counter", "mem_cgroup", "flagged", "legacy", "printk", "items", "wide"];
    for name in names {
        for path in ["usage", "memory.failcnt", "memsw.parent.x", "bits", "x", ""] {
            let _ = btf.member_offset(name, path);
        }
        let _ = (btf.has_func(name), btf.has_struct(name), btf.func_arg_count(name));
        let _ = (btf.enum_value(name, "HUGE"), btf.enum_value(name, "NR_B"));
    }
    let _ = format!("{btf:?}");
}

proptest! {
    #[test]
    fn broken_btf_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 0..12),
        keep in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = kernel().build();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        query_everything(bytes);
    }

    #[test]
    fn random_type_sections_never_panic(words in prop::collection::vec(
        prop_oneof![0..40_u32, (0..20_u32, 0..4_u32).prop_map(|(k, n)| k << 24 | n), any::<u32>()],
        0..200,
    )) {
        let mut b = kernel();
        b.types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        query_everything(b.build());
    }
}
