/*
 * Client of memcg-monitor, which gives cgroup v1's memory notifications on cgroup v2 kernels.
 * One header and one source: cc program.c memcg_monitor.c
 *
 *     struct memcg_monitor *registration;
 *     struct memcg_monitor_error error;
 *     uint64_t signals;
 *
 *     if (memcg_monitor_register("/sys/fs/cgroup/a", MEMCG_MONITOR_USAGE, "512M", NULL,
 *                                &registration, &error))
 *             errx(1, "%s", error.text);
 *     while (memcg_monitor_wait(registration, -1, &signals, &error) == MEMCG_MONITOR_OK)
 *             printf("crossed %" PRIu64 " times\n", signals);
 *     memcg_monitor_close(registration);
 *
 * One thread at a time uses a registration.
 */
#ifndef MEMCG_MONITOR_H
#define MEMCG_MONITOR_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Control files; the arguments are those of docs/guide/registration.md. */
#define MEMCG_MONITOR_USAGE "memory.usage_in_bytes"
#define MEMCG_MONITOR_MEMSW "memory.memsw.usage_in_bytes"
#define MEMCG_MONITOR_WORKING_SET "memory.working_set_bytes"
#define MEMCG_MONITOR_ANON "memory.anon_bytes"
#define MEMCG_MONITOR_OOM "memory.oom_control"
#define MEMCG_MONITOR_PRESSURE "memory.pressure_level"
#define MEMCG_MONITOR_EMPTY "cgroup.procs"
/* With MEMCG_MONITOR_USAGE: the removal alone, which every registration notices. */
#define MEMCG_MONITOR_NEVER "-1"

#define MEMCG_MONITOR_SOCKET "/run/memcg-monitor/event_control.sock"
#define MEMCG_MONITOR_CONTROL_SOCKET "/run/memcg-monitor/control.sock"
#define MEMCG_MONITOR_VIEW "/run/memcg-monitor/cgroup"
#define MEMCG_MONITOR_CGROUP_ROOT "/sys/fs/cgroup"

/* What a call returns. From MEMCG_MONITOR_ENDED on there is an error to read. */
enum memcg_monitor_result {
	MEMCG_MONITOR_OK,
	MEMCG_MONITOR_REMOVED,   /* the group is removed, and the registration with it */
	MEMCG_MONITOR_TIMED_OUT,
	MEMCG_MONITOR_ENDED,     /* the agent ended, or its connection */
	MEMCG_MONITOR_REFUSED,   /* by the agent: its errno and its text */
	MEMCG_MONITOR_FILE,      /* the control file cannot be opened */
	MEMCG_MONITOR_SYSCALL,   /* another system call failed */
	MEMCG_MONITOR_ANSWER,    /* an answer that this version does not understand */
};

struct memcg_monitor_error {
	enum memcg_monitor_result result;
	int number;      /* positive errno, 0 where there is none */
	char text[1024]; /* one line */
};

/* Where the agent is. NULL stands for the default, and "" leaves socket or view out. */
struct memcg_monitor_options {
	const char *socket, *control_socket, *view, *cgroup_root;
	/* Close the connection after the registration, and give up noticing the agent's end: the
	 * agent admits 256 connections of a user. */
	bool drop_connection;
};

/* The cause of a signal. Strings are NULL, and numbers 0, where there is no value; they are
 * valid until the next wait or the close. */
struct memcg_monitor_event {
	double time;       /* seconds since 1970, UTC */
	const char *cgroup;
	/* crossed, oom, oom_kill, oom_group_kill, host_oom_kill, pressure, empty, removed */
	const char *event;
	uint64_t signals;  /* 0 for an event that only adds detail to an OOM */
	const char *on, *direction, *origin, *level;
	bool has_threshold, has_usage, has_victim_pid;
	uint64_t threshold, usage, victim_pid;
	const char *victim_cgroup, *victim_comm;
	uint64_t lost;     /* events that this follower was too slow for, just before */
	const char *reason; /* of a kill: limit, lowered_limit, host */
	/* Of a watch: the inode number of the group's directory, the specification, the lowest limit,
	 * growth in bytes a second, and whether it happened before the group could be registered on. */
	uint64_t id, limit, peak;
	int64_t growth;
	const char *spec;
	bool has_limit, has_growth, has_peak, is_late;
	/* The process id in the process's own pid namespace; victim_pid is that on the agent's host. */
	bool has_victim_own_pid, has_victim_uid, has_victim_oom_score_adj;
	uint64_t victim_own_pid, victim_uid;
	int64_t victim_oom_score_adj;
	/* The first 1,024 bytes of the command line: strings one behind the other, each with its NUL.
	 * NULL where it is not known. */
	const char *victim_command;
	unsigned victim_command_count;
	bool is_victim_command_cut;
	/* Bytes of memory. */
	bool has_victim_total_vm, has_victim_anon_rss, has_victim_file_rss, has_victim_shmem_rss;
	bool has_victim_swap, has_victim_page_tables;
	uint64_t victim_total_vm, victim_anon_rss, victim_file_rss, victim_shmem_rss;
	uint64_t victim_swap, victim_page_tables;
	/* victim_unit is the innermost unit of systemd in the group's path. */
	const char *victim_exe, *victim_unit, *victim_pod_uid, *victim_container_id;
};

struct memcg_monitor;

/*
 * Registers on group, a directory of a cgroup hierarchy or of the view. The socket comes first,
 * since it gives the agent's reason with a refusal and reports the agent's end. Where it cannot
 * be reached, the cgroup.event_control of the group or of the view is written.
 */
enum memcg_monitor_result memcg_monitor_register(const char *group, const char *file, const char *args,
						 const struct memcg_monitor_options *options,
						 struct memcg_monitor **registration,
						 struct memcg_monitor_error *error);

/*
 * Waits for signals, timeout_ms at most (-1: for ever), and stores their number since the last
 * call. MEMCG_MONITOR_ENDED says that the agent has ended: at the socket that is once; wait again
 * if that agent keeps registrations, or else register again. Signals that came before a failure are
 * in the number of the next call.
 */
enum memcg_monitor_result memcg_monitor_wait(struct memcg_monitor *registration, int timeout_ms,
					     uint64_t *signals, struct memcg_monitor_error *error);

/*
 * Registers at the admin socket, which reports the cause of each signal. It is root's alone
 * unless the agent's options admit others. The view reports no causes, so nothing else is tried.
 */
enum memcg_monitor_result memcg_monitor_follow(const char *group, const char *file, const char *args,
					       const struct memcg_monitor_options *options,
					       struct memcg_monitor **follower,
					       struct memcg_monitor_error *error);

/* Waits for the next event of a follower; MEMCG_MONITOR_REMOVED after removed, which is the last. */
enum memcg_monitor_result memcg_monitor_wait_event(struct memcg_monitor *follower, int timeout_ms,
						   struct memcg_monitor_event *event,
						   struct memcg_monitor_error *error);

/* The descriptor to poll: while it is readable, the wait does not block. */
int memcg_monitor_fd(const struct memcg_monitor *registration);

/* The path of the socket or of the cgroup.event_control that took the registration. */
const char *memcg_monitor_route(const struct memcg_monitor *registration);

/* Ends the registration; NULL is fine. */
void memcg_monitor_close(struct memcg_monitor *registration);

#ifdef __cplusplus
}
#endif

#endif
