/*
 * Hears about a group's memory through the agent's socket, with the group's own
 * file; no mount is needed:
 *
 *     socket CONTROL_FILE THRESHOLD
 *     socket /sys/fs/cgroup/a/memory.current 512M
 *
 * Prints `registered`, then `signals: N` each time, then `removed` when the
 * group is gone, and exits with 0. N is how many came since the last line.
 * Build: cc -o socket socket.c
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define AGENT "/run/memcg-monitor/event_control.sock"

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

/* Sends the line along with both descriptors, and takes the answer. */
static void ask(int event, int control, const char *threshold)
{
	struct sockaddr_un agent = { .sun_family = AF_UNIX, .sun_path = AGENT };
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

	length = snprintf(line, sizeof(line), "%d %d %s", event, control, threshold);
	if (length >= (int)sizeof(line)) {
		errno = EINVAL;
		fail("registration with", AGENT);
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
		fail("connect to", AGENT);
	if (sendmsg(connection, &message, MSG_NOSIGNAL) < 0)
		fail("sendmsg to", AGENT);
	do
		got = recv(connection, answer, sizeof(answer) - 1, 0);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		fail("recv from", AGENT);
	answer[got] = '\0';
	/* `0`, or `-ERRNO NAME: why`; nothing at all if the agent has died. */
	if (strcmp(answer, "0") != 0) {
		fprintf(stderr, "the agent refused: %s\n", got ? answer : "it closed the connection");
		exit(1);
	}
	close(connection);
}

int main(int argc, char **argv)
{
	int control, event;

	if (argc != 3) {
		fprintf(stderr, "usage: socket CONTROL_FILE THRESHOLD\n");
		return 2;
	}
	control = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (control < 0)
		fail("open", argv[1]);
	event = eventfd(0, EFD_CLOEXEC);
	if (event < 0)
		fail("eventfd", "");
	ask(event, control, argv[2]);
	/* The registration lives as long as the eventfd; this is done. */
	close(control);
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
		if (access(argv[1], F_OK) < 0) {
			if (errno != ENOENT)
				fail("access", argv[1]);
			puts("removed");
			return 0;
		}
		printf("signals: %" PRIu64 "\n", signals);
	}
}
