/*
 * Signals of a group's memory, by the client for C:
 *
 *     client [--socket PATH] GROUP LEVEL
 *     client /sys/fs/cgroup/a 512M
 *
 * The socket is PATH, else that of the environment variable MEMCG_MONITOR_SOCKET, else the default.
 * Prints `registered`, then `signals: N` each time, then `removed` when the group is gone.
 * Build: cc -I clients/c -o client examples/c/client.c clients/c/memcg_monitor.c
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memcg_monitor.h"

int main(int argc, char **argv)
{
	struct memcg_monitor *registration;
	struct memcg_monitor_error error;
	enum memcg_monitor_result result;
	struct memcg_monitor_options options = { .socket = getenv("MEMCG_MONITOR_SOCKET") };
	uint64_t signals;

	if (argc > 1 && !strncmp(argv[1], "--socket=", 9)) {
		options.socket = argv[1] + 9;
		argv++;
		argc--;
	} else if (argc > 2 && !strcmp(argv[1], "--socket")) {
		options.socket = argv[2];
		argv += 2;
		argc -= 2;
	}
	if (argc != 3) {
		fprintf(stderr, "usage: client [--socket PATH] GROUP LEVEL\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	result = memcg_monitor_register(argv[1], MEMCG_MONITOR_USAGE, argv[2], &options, &registration, &error);
	if (result == MEMCG_MONITOR_OK) {
		puts("registered");
		while ((result = memcg_monitor_wait(registration, -1, &signals, &error)) == MEMCG_MONITOR_OK)
			printf("signals: %" PRIu64 "\n", signals);
		memcg_monitor_close(registration);
	}
	if (result != MEMCG_MONITOR_REMOVED) {
		fprintf(stderr, "%s\n", error.text);
		return 1;
	}
	puts("removed");
	return 0;
}
