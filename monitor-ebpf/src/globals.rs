//! The globals that the loader fills in from the running kernel's BTF.

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $ty:ty => $get:ident;)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            static $name: $ty = 0;

            $(#[$doc])*
            #[inline(always)]
            pub fn $get() -> $ty {
                // SAFETY: a read-only global; volatile because the loader, not
                // the compiler, knows its value.
                unsafe { (&raw const $name).read_volatile() }
            }
        )*
    };
}

#[cfg(feature = "kprobe")]
globals! {
    /// Byte offset of a function's first argument in `struct pt_regs`.
    OFF_REGS_FIRST: u64 => off_regs_first;
    /// Byte offset of a function's second argument in `struct pt_regs`.
    OFF_REGS_SECOND: u64 => off_regs_second;
    /// Byte offset of a function's third argument in `struct pt_regs`.
    OFF_REGS_THIRD: u64 => off_regs_third;
    /// Byte offset of a function's fourth argument in `struct pt_regs`.
    OFF_REGS_FOURTH: u64 => off_regs_fourth;
    /// Byte offset of a function's fifth argument in `struct pt_regs`.
    OFF_REGS_FIFTH: u64 => off_regs_fifth;
    /// Byte offset of a function's sixth argument in `struct pt_regs`.
    OFF_REGS_SIXTH: u64 => off_regs_sixth;
    /// Byte offset of the stack pointer in `struct pt_regs`.
    OFF_REGS_STACK: u64 => off_regs_stack;
    /// Bytes that a return takes from the stack.
    STACK_POPPED: u64 => stack_popped;
}

globals! {
    /// Byte offset of `page_counter.usage`.
    OFF_COUNTER_USAGE: u64 => off_counter_usage;
    /// Byte offset of `page_counter.parent`.
    OFF_COUNTER_PARENT: u64 => off_counter_parent;
    /// Byte offset of `page_counter.watermark`.
    OFF_COUNTER_WATERMARK: u64 => off_counter_watermark;
    /// Byte offset of `mem_cgroup.memory`.
    OFF_MEMCG_MEMORY: u64 => off_memcg_memory;
    /// Byte offset of `cgroup_subsys_state.cgroup`.
    OFF_CSS_CGROUP: u64 => off_css_cgroup;
    /// Byte offset of `page_counter.max`.
    OFF_COUNTER_MAX: u64 => off_counter_max;
    /// Byte offset of `mem_cgroup.swap`; on v1 the same place is `mem_cgroup.memsw`.
    OFF_MEMCG_SWAP: u64 => off_memcg_swap;
    /// Whether that counter is memory+swap, as on v1.
    SWAP_IS_SUM: u32 => swap_is_sum;
    /// Byte offset of `mem_cgroup.vmpressure`.
    OFF_MEMCG_VMPRESSURE: u64 => off_memcg_vmpressure;
    /// Byte offset of `mem_cgroup.under_oom` (kernels with v1 only).
    OFF_MEMCG_UNDER_OOM: u64 => off_memcg_under_oom;
    /// Byte offset of `vmpressure.work`.
    OFF_VMPRESSURE_WORK: u64 => off_vmpressure_work;
    /// Byte offset of `vmpressure.tree_scanned`.
    OFF_VMPRESSURE_SCANNED: u64 => off_vmpressure_scanned;
    /// Byte offset of `vmpressure.tree_reclaimed`.
    OFF_VMPRESSURE_RECLAIMED: u64 => off_vmpressure_reclaimed;
    /// Byte offset of `scan_control.priority`.
    OFF_SCAN_PRIORITY: u64 => off_scan_priority;
    /// Byte offset of `scan_control.gfp_mask`.
    OFF_SCAN_GFP: u64 => off_scan_gfp;
    /// Byte offset of `scan_control.target_mem_cgroup`.
    OFF_SCAN_MEMCG: u64 => off_scan_memcg;
    /// Offset in bits of `scan_control.proactive`; 0: there is none.
    BIT_SCAN_PROACTIVE: u64 => bit_scan_proactive;
    /// Byte offset of `cgroup.subsys[memory_cgrp_id]`.
    OFF_CGROUP_MEMORY_CSS: u64 => off_cgroup_memory_css;
    /// Byte offset of `css_set.subsys[memory_cgrp_id]`.
    OFF_CSS_SET_MEMORY_CSS: u64 => off_css_set_memory_css;
    /// Byte offset of `task_struct.cgroups`.
    OFF_TASK_CGROUPS: u64 => off_task_cgroups;
    /// Byte offset of `task_struct.tgid`.
    OFF_TASK_TGID: u64 => off_task_tgid;
    /// Byte offset of `task_struct.comm`.
    OFF_TASK_COMM: u64 => off_task_comm;
    /// Byte offset of `task_struct.signal`; 0 where the next one is not known.
    OFF_TASK_SIGNAL: u64 => off_task_signal;
    /// Byte offset of `signal_struct.oom_mm`.
    OFF_SIGNAL_OOM_MM: u64 => off_signal_oom_mm;
    /// Byte offset of `signal_struct.oom_score_adj`; 0, as with all below: not known.
    OFF_SIGNAL_SCORE_ADJ: u64 => off_signal_score_adj;
    /// Byte offset of `signal_struct.pids[PIDTYPE_TGID]`; 0 where one of the next three is not known.
    OFF_SIGNAL_PID: u64 => off_signal_pid;
    /// Byte offset of `pid.level`.
    OFF_PID_LEVEL: u64 => off_pid_level;
    /// Byte offset of `pid.numbers[0].nr`.
    OFF_PID_NUMBERS: u64 => off_pid_numbers;
    /// Bytes from one of these numbers to the next.
    SIZE_UPID: u64 => size_upid;
    /// Byte offset of `task_struct.real_cred`; 0 where the next is not known.
    OFF_TASK_CRED: u64 => off_task_cred;
    /// Byte offset of `cred.uid`.
    OFF_CRED_UID: u64 => off_cred_uid;
    /// Byte offset of `task_struct.group_leader`; 0 where the next is not known.
    OFF_TASK_LEADER: u64 => off_task_leader;
    /// Byte offset of `task_struct.start_boottime`.
    OFF_TASK_START: u64 => off_task_start;
    /// Byte offset of `task_struct.mm`.
    OFF_TASK_MM: u64 => off_task_mm;
    /// Byte offset of `mm_struct.total_vm`.
    OFF_MM_TOTAL: u64 => off_mm_total;
    /// Byte offset of the count of anonymous pages in `mm_struct.rss_stat`.
    OFF_MM_ANON: u64 => off_mm_anon;
    /// Byte offset of the count of pages of files.
    OFF_MM_FILE: u64 => off_mm_file;
    /// Byte offset of the count of pages of shared memory.
    OFF_MM_SHMEM: u64 => off_mm_shmem;
    /// Byte offset of the count of pages in swap.
    OFF_MM_SWAP: u64 => off_mm_swap;
    /// Byte offset of `mm_struct.pgtables_bytes`.
    OFF_MM_PAGE_TABLES: u64 => off_mm_page_tables;
    /// Byte offset of `mm_struct.arg_start`; 0 where the next is not known.
    OFF_MM_ARG_START: u64 => off_mm_arg_start;
    /// Byte offset of `mm_struct.arg_end`.
    OFF_MM_ARG_END: u64 => off_mm_arg_end;
    /// Byte offset of `oom_control.memcg`.
    OFF_OOM_MEMCG: u64 => off_oom_memcg;
    /// Byte offset of `mem_cgroup.memory_events_local[MEMCG_OOM]`; 0: not known.
    OFF_MEMCG_OOMS: u64 => off_memcg_ooms;
    /// Byte offset of `cgroup.nr_populated_csets`; 0 where one of the three is not known.
    OFF_CGROUP_CSETS: u64 => off_cgroup_csets;
    /// Byte offset of `cgroup.nr_populated_domain_children`.
    OFF_CGROUP_DOMAINS: u64 => off_cgroup_domains;
    /// Byte offset of `cgroup.nr_populated_threaded_children`.
    OFF_CGROUP_THREADED: u64 => off_cgroup_threaded;
    /// Whether `__oom_kill_process` is attached to: then nothing else kills.
    HAS_OOM_KILL: u32 => has_oom_kill;
    /// Whether the beginnings of `memory_max_write` are attached to.
    HAS_LIMIT_MARKS: u32 => has_limit_marks;
    /// Whether `mem_cgroup_oom_notify` is attached to, and decides.
    HAS_OOM_NOTIFY: u32 => has_oom_notify;
    /// The root group's slot, behind all others.
    ROOT_SLOT: u32 => root_slot;
    /// Byte offset of `cgroup.kn`.
    OFF_CGROUP_KN: u64 => off_cgroup_kn;
    /// Byte offset of `kernfs_node.id`.
    OFF_KN_ID: u64 => off_kn_id;
    /// Byte offset of `task_struct.files`; 0 where it, or one of the next five, is not known.
    OFF_TASK_FILES: u64 => off_task_files;
    /// Byte offset of `files_struct.fdt`.
    OFF_FILES_TABLE: u64 => off_files_table;
    /// Byte offset of `fdtable.fd`.
    OFF_TABLE_FILES: u64 => off_table_files;
    /// Byte offset of `file.f_inode`.
    OFF_FILE_INODE: u64 => off_file_inode;
    /// Byte offset of `inode.i_private`.
    OFF_INODE_PRIVATE: u64 => off_inode_private;
    /// Byte offset of `kernfs_node.priv`.
    OFF_KN_PRIVATE: u64 => off_kn_private;
    /// Byte offset of `file.f_count`, or `file.f_ref` (6.13 and newer).
    OFF_FILE_REFS: u64 => off_file_refs;
    /// The number to add to that word to get the number of references.
    FILE_REFS_BIAS: u64 => file_refs_bias;
    /// Unit of the packed band, as a shift.
    BAND_SHIFT: u32 => band_shift;
    /// Stays 0; see [`rolled`].
    NOTHING: u64 => nothing;
}
