/*
 * Receives a group's memory events through the agent's socket, with the group's
 * own file or its directory; no mount is needed:
 *
 *     socket [--socket=PATH] CONTROL_FILE [ARGUMENT]
 *     socket /sys/fs/cgroup/a/memory.current 512M
 *     socket /sys/fs/cgroup/a memory.oom_control
 *     socket /sys/fs/cgroup/a 'memory.pressure_level medium'
 *
 * Prints `registered`, then `signals: N` each time, then `removed` when the
 * group is gone, and exits with 0. N is how many came since the last line.
 * Prints `agent ended` when the agent ends: signals go on once an agent that
 * keeps registrations is back; after any other, start this again.
 * Build: cc -o socket socket.c
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/memcg-monitor/event_control.sock"

/* Ends the program with what failed, its errno, and what to do about it. */
static void fail(const char *what, const char *name)
{
	int number = errno;
	const char *hint = "";

	if (number == ENOENT || number == ECONNREFUSED)
		hint = "; is there such a group, and does the agent run?";
	else if (number == EACCES)
		hint = "; you need read permission on the group's file, and write permission on the socket";
	fprintf(stderr, "%s %s: errno %d (%s)%s\n", what, name, number, strerror(number), hint);
	exit(1);
}

/* Sends the line with both descriptors, receives the answer, and returns the connection. */
static int register_event(const char *path, int event, int control, const char *argument)
{
	struct sockaddr_un agent = { .sun_family = AF_UNIX };
	int descriptors[2] = { event, control };
	char line[512], answer[1024];
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(descriptors))];
	} rights = { 0 };
	struct iovec part = { .iov_base = line };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = sizeof(rights),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int connection, length;
	ssize_t got;

	if (strlen(path) >= sizeof(agent.sun_path)) {
		errno = ENAMETOOLONG;
		fail("connect to", path);
	}
	strcpy(agent.sun_path, path);
	length = snprintf(line, sizeof(line), "%d %d %s", event, control, argument);
	if (length >= (int)sizeof(line)) {
		errno = EINVAL;
		fail("registration with", path);
	}
	part.iov_len = length;
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(descriptors));
	memcpy(CMSG_DATA(header), descriptors, sizeof(descriptors));

	connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connection < 0)
		fail("socket", "");
	if (connect(connection, (struct sockaddr *)&agent, sizeof(agent)) < 0)
		fail("connect to", path);
	if (sendmsg(connection, &message, MSG_NOSIGNAL) < 0)
		fail("sendmsg to", path);
	do
		got = recv(connection, answer, sizeof(answer) - 1, 0);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		fail("recv from", path);
	answer[got] = '\0';
	/* `0`, or `-ERRNO NAME: why`; nothing at all if the agent has died. */
	if (strcmp(answer, "0") != 0) {
		fprintf(stderr, "the agent refused: %s\n", got ? answer : "it closed the connection");
		exit(1);
	}
	return connection;
}

int main(int argc, char **argv)
{
	const char *path = DEFAULT_SOCKET;
	struct pollfd watched[2];
	int control, event, connection, at = 1;

	if (at < argc && strncmp(argv[at], "--socket=", 9) == 0)
		path = argv[at++] + 9;
	if (argc - at != 1 && argc - at != 2) {
		fprintf(stderr, "usage: socket [--socket=PATH] CONTROL_FILE [ARGUMENT]\n");
		return 2;
	}
	control = open(argv[at], O_RDONLY | O_CLOEXEC);
	if (control < 0)
		fail("open", argv[at]);
	event = eventfd(0, EFD_CLOEXEC);
	if (event < 0)
		fail("eventfd", "");
	connection = register_event(path, event, control, argc - at == 2 ? argv[at + 1] : "");
	/* The registration lives as long as the eventfd; the file is not needed any more. */
	close(control);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("registered");

	/* The eventfd does not show the agent's end; the connection's hang-up does. */
	watched[0] = (struct pollfd){ .fd = event, .events = POLLIN };
	watched[1] = (struct pollfd){ .fd = connection, .events = POLLIN };
	for (;;) {
		uint64_t signals;

		if (poll(watched, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			fail("poll of", "the eventfd");
		}
		if (watched[1].revents) {
			puts("agent ended");
			close(connection);
			/* poll(2) leaves out a negative descriptor. */
			watched[1].fd = -1;
		}
		if (!(watched[0].revents & POLLIN))
			continue;
		if (read(event, &signals, sizeof(signals)) < 0) {
			if (errno == EINTR)
				continue;
			fail("read of", "the eventfd");
		}
		/* A removal signals once more, when the files are gone already. */
		if (access(argv[at], F_OK) < 0) {
			if (errno != ENOENT)
				fail("access", argv[at]);
			puts("removed");
			return 0;
		}
		printf("signals: %" PRIu64 "\n", signals);
	}
}
