/*
 * Receives a group's memory events through the files that cgroup v1 had:
 *
 *     listen CONTROL_FILE [ARGUMENT]
 *     listen /run/memcg-monitor/cgroup/a/memory.usage_in_bytes 512M
 *     listen /run/memcg-monitor/cgroup/a/memory.oom_control
 *     listen /run/memcg-monitor/cgroup/a/memory.pressure_level medium,hierarchy
 *
 * Prints `registered`, then `signals: N` each time, then `removed` when the
 * group is gone, and exits with 0. N is how many came since the last line.
 * Build: cc -o listen listen.c
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Ends the program with what failed, its errno, and what to do about it. */
static void fail(const char *what, const char *name)
{
	int number = errno;
	const char *hint = "";

	if (number == ENOENT)
		hint = "; is there such a group, and does the agent run?";
	else if (number == EACCES)
		hint = "; the control file must be readable, and cgroup.event_control writable for you";
	else if (number == EINVAL)
		hint = "; is the argument one that this control file takes?";
	else if (number == EPERM)
		hint = "; the agent may not take descriptors (sysctl kernel.yama.ptrace_scope): use its socket";
	else if (number == EDQUOT)
		hint = "; you have as many registrations as one may have";
	else if (number == ENOMEM)
		hint = "; the agent's tables are full: its log names the option";
	else if (number == EOPNOTSUPP)
		hint = "; this host does not report it: see `memcg-monitor check`";
	else if (number == ENOTCONN)
		hint = "; the agent has died: start it again";
	fprintf(stderr, "%s %s: errno %d (%s)%s\n", what, name, number, strerror(number), hint);
	exit(1);
}

int main(int argc, char **argv)
{
	char path[PATH_MAX], line[512];
	const char *slash;
	int control, event_control, event, length;

	if (argc < 2 || argc > 3 || !(slash = strrchr(argv[1], '/'))) {
		fprintf(stderr, "usage: listen DIRECTORY/CONTROL_FILE [ARGUMENT]\n");
		return 2;
	}
	length = snprintf(path, sizeof(path), "%.*s/cgroup.event_control", (int)(slash - argv[1]), argv[1]);
	if (length >= (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		fail("open", argv[1]);
	}
	control = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (control < 0)
		fail("open", argv[1]);
	event_control = open(path, O_WRONLY | O_CLOEXEC);
	if (event_control < 0)
		fail("open", path);
	event = eventfd(0, EFD_CLOEXEC);
	if (event < 0)
		fail("eventfd", "");

	length = snprintf(line, sizeof(line), "%d %d %s", event, control, argc == 3 ? argv[2] : "");
	if (length >= (int)sizeof(line)) {
		errno = EINVAL;
		fail("write to", path);
	}
	if (write(event_control, line, length) < 0)
		fail("write to", path);
	/* The registration lives as long as the eventfd; these are done. */
	close(control);
	close(event_control);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("registered");

	for (;;) {
		uint64_t signals;

		if (read(event, &signals, sizeof(signals)) < 0) {
			if (errno == EINTR)
				continue;
			fail("read of", "the eventfd");
		}
		/* A removal signals once more, when the files are gone already. */
		if (access(path, F_OK) < 0) {
			if (errno != ENOENT)
				fail("access", path);
			puts("removed");
			return 0;
		}
		printf("signals: %" PRIu64 "\n", signals);
	}
}
