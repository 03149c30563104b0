/*
 * The program beside a real agent, which `cargo xtask test` starts: one for each client.
 * live SOCKET CONTROL_SOCKET GROUP SECOND_GROUP
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "memcg_monitor.h"

static struct memcg_monitor_error error;

static void need(enum memcg_monitor_result result)
{
	if (!result)
		return;
	fprintf(stderr, "%s\n", error.text);
	exit(1);
}

int main(int argc, char **argv)
{
	struct memcg_monitor *registration, *follower, *other;
	struct memcg_monitor_options options = { 0 };
	enum memcg_monitor_result result;
	struct memcg_monitor_event event;
	uint64_t signals;

	if (argc != 5)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	options.socket = argv[1];
	options.control_socket = argv[2];
	if (memcg_monitor_register(argv[3], MEMCG_MONITOR_USAGE, "8MB", &options, &registration, &error) ==
	    MEMCG_MONITOR_REFUSED)
		printf("refused %d\n", error.number);
	need(memcg_monitor_register(argv[3], MEMCG_MONITOR_USAGE, "8M", &options, &registration, &error));
	need(memcg_monitor_follow(argv[3], MEMCG_MONITOR_USAGE, "8M", &options, &follower, &error));
	need(memcg_monitor_register(argv[4], MEMCG_MONITOR_USAGE, "8M", &options, &other, &error));
	puts("registered");
	while ((result = memcg_monitor_wait_event(follower, -1, &event, &error)) == MEMCG_MONITOR_OK) {
		result = memcg_monitor_wait(registration, -1, &signals, &error);
		if (result == MEMCG_MONITOR_REMOVED) {
			printf("signals None %s None\n", event.event);
			continue;
		}
		need(result);
		printf("signals %" PRIu64 " %s %s\n", signals, event.event, event.direction);
	}
	if (result != MEMCG_MONITOR_REMOVED)
		need(result);
	while ((result = memcg_monitor_wait(other, -1, &signals, &error)) == MEMCG_MONITOR_OK)
		;
	if (result != MEMCG_MONITOR_ENDED)
		need(result);
	puts("ended");
	memcg_monitor_close(registration);
	memcg_monitor_close(follower);
	memcg_monitor_close(other);
	return 0;
}
