#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "memcg_monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define EVENT_CONTROL "cgroup.event_control"
#define USAGE_FILE "memory.current"

enum { LARGEST_ANSWER = 256 * 1024, LARGEST_LINE = 4096, DEEPEST = 64 };

/* f_type of the kernel's own cgroup v1, CGROUP_SUPER_MAGIC of linux/magic.h. */
enum { CGROUP_V1_MAGIC = 0x27e0eb };

/* Milliseconds between two looks at a view, which does not report that the agent was killed. */
static int look_ms = 1000;

/* A file that is gone once the group is, by its name and identity. */
struct mark {
	char path[PATH_MAX];
	dev_t device;
	ino_t inode;
};

/* An open control file, or the directory of a group that has no such file. */
struct target {
	int fd;
	char prefix[64];
	char path[PATH_MAX];
	struct mark mark;
};

struct memcg_monitor {
	int event;
	int connection; /* -1: none, or ended */
	/* The file `served`, to know the view by: that of the next agent has the same path. -1: none */
	int view;
	bool is_follower, is_removed, is_view_gone;
	uint64_t pending; /* signals read from the eventfd that no wait has reported */
	struct mark mark;
	char route[PATH_MAX];
	char served[PATH_MAX]; /* the cgroup.event_control to look at, or "" */
	char *packet;
};

__attribute__((format(printf, 4, 5))) static enum memcg_monitor_result
fail(struct memcg_monitor_error *error, enum memcg_monitor_result result, int number, const char *format, ...)
{
	va_list arguments;
	size_t length;

	if (!error)
		return result;
	error->result = result;
	error->number = number;
	va_start(arguments, format);
	vsnprintf(error->text, sizeof(error->text), format, arguments);
	va_end(arguments);
	length = strlen(error->text);
	if (number && result != MEMCG_MONITOR_REFUSED)
		snprintf(error->text + length, sizeof(error->text) - length, ": %s", strerror(number));
	return result;
}

/* Text of the agent that is longer than an error's place is cut. */
static enum memcg_monitor_result not_understood(struct memcg_monitor_error *error, const char *answer)
{
	return fail(error, MEMCG_MONITOR_ANSWER, 0, "the agent answered \"%s\"", answer);
}

/* ---- JSON: what the admin socket answers ---- */

static const char *skip_space(const char *p)
{
	return p + strspn(p, " \t\n\r");
}

/* Returns what follows a string, NULL where it is none. */
static const char *skip_string(const char *p)
{
	if (*p++ != '"')
		return NULL;
	for (; *p != '"'; p++) {
		if (*p == '\0' || (*p == '\\' && *++p == '\0'))
			return NULL;
	}
	return p + 1;
}

/* Returns what follows a value and the space behind it, NULL where it is none. */
static const char *skip_value(const char *p, int depth)
{
	char close;
	size_t length;

	if (depth > DEEPEST)
		return NULL;
	p = skip_space(p);
	if (*p == '"') {
		p = skip_string(p);
		return p ? skip_space(p) : NULL;
	}
	if (*p != '{' && *p != '[') {
		length = strspn(p, "+-.0123456789abcdefghijklmnopqrstuvwxyzE");
		return length ? skip_space(p + length) : NULL;
	}
	close = *p == '{' ? '}' : ']';
	p = skip_space(p + 1);
	if (*p == close)
		return skip_space(p + 1);
	for (;;) {
		if (close == '}') {
			p = skip_string(skip_space(p));
			if (!p || *(p = skip_space(p)) != ':')
				return NULL;
			p++;
		}
		p = skip_value(p, depth + 1);
		if (!p)
			return NULL;
		if (*p == close)
			return skip_space(p + 1);
		if (*p++ != ',')
			return NULL;
	}
}

/* Returns the value of an object's member, NULL where there is none or it is null. */
static const char *member(const char *object, const char *name)
{
	size_t length = strlen(name);
	const char *p = skip_space(object), *value;

	if (*p++ != '{')
		return NULL;
	for (p = skip_space(p); *p == '"'; p = skip_space(p + 1)) {
		bool is_it = !strncmp(p + 1, name, length) && p[1 + length] == '"';

		p = skip_string(p);
		if (!p || *(p = skip_space(p)) != ':')
			return NULL;
		value = skip_space(p + 1);
		if (is_it)
			return strncmp(value, "null", 4) ? value : NULL;
		p = skip_value(value, 0);
		if (!p || *p != ',')
			return NULL;
	}
	return NULL;
}

static bool read_hex(const char *p, unsigned *code)
{
	char digits[5] = { 0 };

	memcpy(digits, p, strnlen(p, 4));
	*code = (unsigned)strtoul(digits, NULL, 16);
	return strspn(digits, "0123456789abcdefABCDEF") == 4;
}

static char *put_utf8(char *out, unsigned code)
{
	if (code < 0x80) {
		*out++ = (char)code;
	} else if (code < 0x800) {
		*out++ = (char)(0xc0 | code >> 6);
		*out++ = (char)(0x80 | (code & 0x3f));
	} else if (code < 0x10000) {
		*out++ = (char)(0xe0 | code >> 12);
		*out++ = (char)(0x80 | (code >> 6 & 0x3f));
		*out++ = (char)(0x80 | (code & 0x3f));
	} else {
		*out++ = (char)(0xf0 | code >> 18);
		*out++ = (char)(0x80 | (code >> 12 & 0x3f));
		*out++ = (char)(0x80 | (code >> 6 & 0x3f));
		*out++ = (char)(0x80 | (code & 0x3f));
	}
	return out;
}

/* Reads a string to *free, which moves behind it; it takes no more room than its JSON. */
static char *read_string(const char *p, char **free)
{
	static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
	char *start = *free, *out = start;
	const char *letter;
	unsigned code, low;

	if (!p || !skip_string(p))
		return NULL;
	for (p++; *p != '"'; p++) {
		if (*p != '\\') {
			*out++ = *p;
			continue;
		}
		p++;
		letter = strchr(from, *p);
		if (letter) {
			*out++ = to[letter - from];
		} else if (*p != 'u') {
			*out++ = *p;
		} else if (!read_hex(p + 1, &code)) {
			return NULL;
		} else {
			p += 4;
			if (code >= 0xd800 && code < 0xdc00 && p[1] == '\\' && p[2] == 'u' && read_hex(p + 3, &low) &&
			    low >= 0xdc00 && low < 0xe000) {
				code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
				p += 6;
			}
			out = put_utf8(out, code);
		}
	}
	*out++ = '\0';
	*free = out;
	return start;
}

static bool read_number(const char *p, uint64_t *number)
{
	char *end;

	if (!p || *p < '0' || *p > '9')
		return false;
	errno = 0;
	*number = strtoull(p, &end, 10);
	return errno == 0 && !strchr(".eE", *end);
}

static bool read_signed(const char *p, int64_t *number)
{
	bool is_negative = p && *p == '-';
	uint64_t size;

	if (!read_number(p ? p + is_negative : NULL, &size) || size > INT64_MAX)
		return false;
	*number = is_negative ? -(int64_t)size : (int64_t)size;
	return true;
}

static bool read_flag(const char *p)
{
	return p && !strncmp(p, "true", 4);
}

/* Reads an array of strings to *free, one behind the other; NULL where it is none. */
static char *read_strings(const char *p, char **free, unsigned *count)
{
	char *start = *free;

	*count = 0;
	if (!p || *p != '[')
		return NULL;
	for (p = skip_space(p + 1); *p == '"'; p = skip_space(p + (*p == ','))) {
		if (!read_string(p, free))
			break;
		++*count;
		p = skip_space(skip_string(p));
	}
	if (*p == ']')
		return start;
	*count = 0;
	return NULL;
}

/* Reads seconds: strtod would take the locale's decimal point. */
static bool read_seconds(const char *p, double *seconds)
{
	double scale = 1;

	if (!p || *p < '0' || *p > '9')
		return false;
	for (*seconds = 0; *p >= '0' && *p <= '9'; p++)
		*seconds = *seconds * 10 + (*p - '0');
	if (*p == '.') {
		for (p++; *p >= '0' && *p <= '9'; p++) {
			*seconds = *seconds * 10 + (*p - '0');
			scale *= 10;
		}
	}
	*seconds /= scale;
	return true;
}

/* ---- packets ---- */

static enum memcg_monitor_result check_answer(const char *answer, struct memcg_monitor_error *error)
{
	char *end;
	long number;

	if (!strcmp(answer, "0"))
		return MEMCG_MONITOR_OK;
	if (!*answer)
		return fail(error, MEMCG_MONITOR_ENDED, 0,
			    "the agent ended the connection without an answer: it ended itself, or this user has as "
			    "many connections open as one may have");
	number = strtol(answer, &end, 10);
	if (*answer != '-' || number >= 0 || number < INT_MIN + 1 || (*end && *end != ' '))
		return not_understood(error, answer);
	return fail(error, MEMCG_MONITOR_REFUSED, (int)-number, "%s", *end ? end + 1 : "");
}

static bool read_victim(const char *victim, char **free, struct memcg_monitor_event *event)
{
	static const struct {
		const char *name;
		size_t has, number;
	} numbers[] = {
#define NUMBER(name)                                                     \
	{ #name, offsetof(struct memcg_monitor_event, has_victim_##name), \
	  offsetof(struct memcg_monitor_event, victim_##name) }
		NUMBER(pid),	   NUMBER(own_pid),   NUMBER(uid),  NUMBER(total_vm),	NUMBER(anon_rss),
		NUMBER(file_rss), NUMBER(shmem_rss), NUMBER(swap), NUMBER(page_tables),
#undef NUMBER
	};

	event->victim_cgroup = read_string(member(victim, "cgroup"), free);
	event->victim_comm = read_string(member(victim, "comm"), free);
	event->victim_command = read_strings(member(victim, "command"), free, &event->victim_command_count);
	event->is_victim_command_cut = read_flag(member(victim, "command_cut"));
	event->victim_exe = read_string(member(victim, "exe"), free);
	event->victim_unit = read_string(member(victim, "unit"), free);
	event->victim_pod_uid = read_string(member(victim, "pod_uid"), free);
	event->victim_container_id = read_string(member(victim, "container_id"), free);
	event->has_victim_oom_score_adj = read_signed(member(victim, "oom_score_adj"), &event->victim_oom_score_adj);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		uint64_t *number = (uint64_t *)((char *)event + numbers[i].number);

		*(bool *)((char *)event + numbers[i].has) = read_number(member(victim, numbers[i].name), number);
	}
	return event->victim_cgroup;
}

static bool read_event(const char *packet, char *free, struct memcg_monitor_event *event)
{
	const char *victim = member(packet, "victim");

	memset(event, 0, sizeof(*event));
	event->cgroup = read_string(member(packet, "cgroup"), &free);
	event->event = read_string(member(packet, "event"), &free);
	event->on = read_string(member(packet, "on"), &free);
	event->direction = read_string(member(packet, "direction"), &free);
	event->origin = read_string(member(packet, "origin"), &free);
	event->level = read_string(member(packet, "level"), &free);
	event->has_threshold = read_number(member(packet, "threshold"), &event->threshold);
	event->has_usage = read_number(member(packet, "usage"), &event->usage);
	event->reason = read_string(member(packet, "reason"), &free);
	event->spec = read_string(member(packet, "spec"), &free);
	event->has_limit = read_number(member(packet, "limit"), &event->limit);
	event->has_growth = read_signed(member(packet, "growth"), &event->growth);
	event->has_peak = read_number(member(packet, "peak"), &event->peak);
	event->is_late = read_flag(member(packet, "late"));
	read_number(member(packet, "id"), &event->id);
	read_number(member(packet, "lost"), &event->lost);
	if (victim && !read_victim(victim, &free, event))
		return false;
	return event->cgroup && event->event && read_seconds(member(packet, "time"), &event->time) &&
	       read_number(member(packet, "signals"), &event->signals);
}

/* Reads an answer of the admin socket: `listening`, where no event is wanted, or an event, whose
 * strings go to `room`, as large as the packet. */
static enum memcg_monitor_result decode(const char *packet, char *room, struct memcg_monitor_event *event,
					struct memcg_monitor_error *error)
{
	const char *end = skip_value(packet, 0), *type;
	char *why, *free = room;
	uint64_t number;

	if (!*packet)
		return fail(error, MEMCG_MONITOR_ENDED, 0, "the agent ended; register again once it is back");
	if (!end || *end || *skip_space(packet) != '{')
		return not_understood(error, packet);
	type = read_string(member(packet, "type"), &free);
	if (!type)
		return not_understood(error, packet);
	if (!strcmp(type, "listening") && !event)
		return MEMCG_MONITOR_OK;
	if (!strcmp(type, "event") && event && read_event(packet, room, event))
		return MEMCG_MONITOR_OK;
	if (!strcmp(type, "error") && read_number(member(packet, "errno"), &number)) {
		why = read_string(member(packet, "why"), &free);
		if (why)
			return fail(error, MEMCG_MONITOR_REFUSED, (int)number, "%s", why);
	}
	return not_understood(error, packet);
}

static enum memcg_monitor_result make_line(char line[LARGEST_LINE + 1], int event, const struct target *target,
					   const char *args, struct memcg_monitor_error *error)
{
	int length = snprintf(line, LARGEST_LINE + 1, "%d %d %s%s", event, target->fd, target->prefix, args);

	if (length > LARGEST_LINE)
		return fail(error, MEMCG_MONITOR_REFUSED, E2BIG, "E2BIG: the line is longer than 4096 bytes");
	return MEMCG_MONITOR_OK;
}

/* Writes the admin socket's packet that follows a registration; `packet` holds six bytes for
 * each of the line's, and twenty more. */
static void make_listen(char *packet, const char *line)
{
	char *out = stpcpy(packet, "{\"listen\":\"");

	for (; *line; line++) {
		if (*line == '"' || *line == '\\')
			*out++ = '\\';
		if ((unsigned char)*line < ' ')
			out += sprintf(out, "\\u%04x", (unsigned char)*line);
		else
			*out++ = *line;
	}
	strcpy(out, "\"}");
}

static enum memcg_monitor_result connect_to(const char *path, int *connection, struct memcg_monitor_error *error)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int number;

	if (strlen(path) >= sizeof(address.sun_path))
		return fail(error, MEMCG_MONITOR_SYSCALL, ENAMETOOLONG, "connect %s", path);
	strcpy(address.sun_path, path);
	*connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (*connection < 0)
		return fail(error, MEMCG_MONITOR_SYSCALL, errno, "socket");
	if (connect(*connection, (struct sockaddr *)&address, sizeof(address)) == 0)
		return MEMCG_MONITOR_OK;
	number = errno;
	close(*connection);
	*connection = -1;
	return fail(error, MEMCG_MONITOR_SYSCALL, number, "connect %s%s", path,
		    number == ENOENT || number == ECONNREFUSED ? " (is `memcg-monitor agent` running?)" : "");
}

static enum memcg_monitor_result send_packet(int connection, const char *text, int event, int control,
					     struct memcg_monitor_error *error)
{
	int descriptors[2] = { event, control };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(descriptors))];
	} rights = { .bytes = { 0 } };
	struct iovec part = { .iov_base = (void *)text, .iov_len = strlen(text) };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = sizeof(rights),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(descriptors));
	memcpy(CMSG_DATA(header), descriptors, sizeof(descriptors));
	if (sendmsg(connection, &message, MSG_NOSIGNAL) < 0)
		return fail(error, MEMCG_MONITOR_SYSCALL, errno, "sendmsg to the agent");
	return MEMCG_MONITOR_OK;
}

/* Receives one packet as text; it is empty when the agent ended the connection. TIMED_OUT with
 * MSG_DONTWAIT says that there is none. */
static enum memcg_monitor_result receive(int connection, char packet[LARGEST_ANSWER + 1], int flags,
					 struct memcg_monitor_error *error)
{
	ssize_t length;

	do
		length = recv(connection, packet, LARGEST_ANSWER, flags);
	while (length < 0 && errno == EINTR);
	if (length < 0 && errno == EAGAIN && flags & MSG_DONTWAIT)
		return MEMCG_MONITOR_TIMED_OUT;
	if (length < 0 && errno != ECONNRESET)
		return fail(error, MEMCG_MONITOR_SYSCALL, errno, "recv from the agent");
	packet[length < 0 ? 0 : length] = '\0';
	return MEMCG_MONITOR_OK;
}

/* ---- files ---- */

static bool join(char path[PATH_MAX], const char *directory, const char *name)
{
	return snprintf(path, PATH_MAX, "%s/%s", directory, name) < PATH_MAX;
}

static enum memcg_monitor_result make_mark(struct mark *mark, const char *path, int fd,
					   struct memcg_monitor_error *error)
{
	struct stat found;

	if (fstat(fd, &found) < 0)
		return fail(error, MEMCG_MONITOR_FILE, errno, "look at %s", path);
	snprintf(mark->path, sizeof(mark->path), "%s", path);
	mark->device = found.st_dev;
	mark->inode = found.st_ino;
	return MEMCG_MONITOR_OK;
}

static bool is_control_file(const char *name)
{
	static const char *const names[] = { MEMCG_MONITOR_USAGE, MEMCG_MONITOR_MEMSW, MEMCG_MONITOR_WORKING_SET,
					     MEMCG_MONITOR_ANON,
					     MEMCG_MONITOR_OOM, MEMCG_MONITOR_PRESSURE, MEMCG_MONITOR_EMPTY,
					     USAGE_FILE };

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (!strcmp(name, names[i]))
			return true;
	}
	return false;
}

/* Opens `path` as the target itself. */
static enum memcg_monitor_result use(struct target *target, const char *path, struct memcg_monitor_error *error)
{
	enum memcg_monitor_result result = make_mark(&target->mark, path, target->fd, error);

	if (result)
		close(target->fd);
	snprintf(target->path, sizeof(target->path), "%s", path);
	return result;
}

/* Opens the control file of a group by v1's name, or the directory if it has none. */
static enum memcg_monitor_result open_target(struct target *target, const char *group, const char *name,
					     struct memcg_monitor_error *error)
{
	/* The root has no usage file: cgroup.procs is always there. */
	static const char *const marks[] = { USAGE_FILE, MEMCG_MONITOR_EMPTY };
	char path[PATH_MAX], found[PATH_MAX];
	enum memcg_monitor_result result;
	int number, fd;

	memset(target, 0, sizeof(*target));
	if (!join(path, group, name))
		return fail(error, MEMCG_MONITOR_FILE, ENAMETOOLONG, "open %s", group);
	target->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (target->fd >= 0)
		return use(target, path, error);
	number = errno;
	if (!strcmp(name, USAGE_FILE))
		name = MEMCG_MONITOR_USAGE;
	for (int i = 0; i < 2 && is_control_file(name); i++) {
		if (!join(found, group, marks[i]) || (fd = open(found, O_RDONLY | O_CLOEXEC)) < 0)
			continue;
		if (i == 0 && !strcmp(name, MEMCG_MONITOR_USAGE)) {
			target->fd = fd;
			return use(target, found, error);
		}
		result = make_mark(&target->mark, found, fd, error);
		close(fd);
		if (result)
			return result;
		target->fd = open(group, O_RDONLY | O_CLOEXEC);
		if (target->fd < 0)
			return fail(error, MEMCG_MONITOR_FILE, errno, "open %s", group);
		snprintf(target->prefix, sizeof(target->prefix), "%s ", name);
		snprintf(target->path, sizeof(target->path), "%s", group);
		return MEMCG_MONITOR_OK;
	}
	return fail(error, MEMCG_MONITOR_FILE, number, "open %s", path);
}

/* Whether an errno is that of a view without its agent; ECONNABORTED comes to a call that was
 * under way. */
static bool is_agent_gone(int number)
{
	return number == ENOTCONN || number == ECONNABORTED;
}

/* Whether there is a file of this name that answers. */
static bool exists(const char *path)
{
	struct stat found;

	return stat(path, &found) == 0 ||
	       (errno != ENOENT && errno != ENOTDIR && errno != ENODEV && !is_agent_gone(errno));
}

/* Stores the cgroup.event_control for a group: its own, or the view's, or "". */
static void event_control(char path[PATH_MAX], const char *group, const char *view, const char *root,
			  bool (*is_there)(const char *))
{
	size_t length = strlen(group), whole = strlen(root);
	char directory[PATH_MAX];

	*path = '\0';
	while (length > 1 && group[length - 1] == '/')
		length--;
	if (length >= sizeof(directory))
		return;
	snprintf(directory, sizeof(directory), "%.*s", (int)length, group);
	if (join(path, directory, EVENT_CONTROL) && is_there(path))
		return;
	*path = '\0';
	if (strncmp(directory, root, whole) || (directory[whole] && directory[whole] != '/'))
		return;
	if (strstr(directory, "/../") || snprintf(path, PATH_MAX, "%s%s/" EVENT_CONTROL, view, directory + whole) >= PATH_MAX)
		*path = '\0';
}

/* Whether a directory above has a cgroup.event_control: then the view is there. */
static bool has_view_above(const char *path)
{
	char directory[PATH_MAX], control[PATH_MAX];
	char *slash;

	snprintf(directory, sizeof(directory), "%s", path);
	slash = strrchr(directory, '/');
	if (slash)
		*slash = '\0';
	while ((slash = strrchr(directory, '/'))) {
		*slash = '\0';
		if (join(control, directory, EVENT_CONTROL) && exists(control))
			return true;
	}
	return false;
}

static bool is_beside(const char *one, const char *other)
{
	size_t length = (size_t)(strrchr(one, '/') - one);

	return !strncmp(one, other, length + 1) && !strchr(other + length + 1, '/');
}

/* ---- registrations ---- */

static const char *or_default(const char *text, const char *otherwise)
{
	return text ? text : otherwise;
}

static struct memcg_monitor *new_registration(struct memcg_monitor_error *error)
{
	struct memcg_monitor *new = calloc(1, sizeof(*new));

	if (!new) {
		fail(error, MEMCG_MONITOR_SYSCALL, ENOMEM, "calloc");
		return NULL;
	}
	new->connection = new->view = -1;
	new->packet = malloc(2 * (LARGEST_ANSWER + 1));
	new->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (new->event < 0 || !new->packet) {
		fail(error, MEMCG_MONITOR_SYSCALL, errno, new->packet ? "eventfd2" : "malloc");
		memcg_monitor_close(new);
		return NULL;
	}
	return new;
}

static enum memcg_monitor_result at_socket(struct memcg_monitor *new, const struct target *target, const char *line,
					   struct memcg_monitor_error *error)
{
	enum memcg_monitor_result result = send_packet(new->connection, line, new->event, target->fd, error);

	if (!result)
		result = receive(new->connection, new->packet, 0, error);
	return result ? result : check_answer(new->packet, error);
}

static enum memcg_monitor_result view_gone(struct memcg_monitor_error *error)
{
	return fail(error, MEMCG_MONITOR_ENDED, 0,
		    "the view is gone: the agent ended, or unmounted it; register again once it is back");
}

/* Makes the error of a write to a cgroup.event_control, after that of the socket, if any. */
static enum memcg_monitor_result refused(int fd, const char *control, int number, bool has_failed,
					 struct memcg_monitor_error *error)
{
	struct memcg_monitor_error socket = *error;
	struct statfs system;

	if (is_agent_gone(number))
		return view_gone(error);
	if (fstatfs(fd, &system) < 0 || system.f_type != CGROUP_V1_MAGIC)
		return fail(error, MEMCG_MONITOR_REFUSED, number, "write to %s: %s; the reason is in the agent's log",
			    control, strerror(number));
	return fail(error, MEMCG_MONITOR_REFUSED, number,
		    "write to %s: %s; this is the kernel's own cgroup v1, which knows no percent, direction, "
		    "hysteresis, exact, working set, anon or empty; %s%s",
		    control, strerror(number), has_failed ? "the agent was not reached: " : "the agent's socket was left out",
		    has_failed ? socket.text : "");
}

/* Holds the cgroup.event_control that will serve a registration. Before that is made: an agent that comes
 * between is seen as another, and not the other way round. */
static bool hold(struct memcg_monitor *new, const char *control)
{
	new->view = open(control, O_PATH | O_CLOEXEC);
	strcpy(new->served, control);
	return new->view >= 0;
}

static enum memcg_monitor_result at_view(struct memcg_monitor *new, const char *control, const char *line,
					 struct memcg_monitor_error *error, bool has_failed)
{
	int fd = hold(new, control) ? open(control, O_WRONLY | O_CLOEXEC) : -1;
	enum memcg_monitor_result result = MEMCG_MONITOR_OK;
	size_t length;

	if (fd < 0 && has_failed) {
		/* The socket's error is the one to act on. */
		length = strlen(error->text);
		snprintf(error->text + length, sizeof(error->text) - length, "; open %s: %s", control,
			 strerror(errno));
		return error->result;
	}
	if (fd < 0)
		return fail(error, MEMCG_MONITOR_FILE, errno, "open %s", control);
	if (write(fd, line, strlen(line)) < 0)
		result = refused(fd, control, errno, has_failed, error);
	close(fd);
	if (result)
		return result;
	strcpy(new->route, control);
	return MEMCG_MONITOR_OK;
}

static bool falls_back(int number)
{
	return number == ENOENT || number == ECONNREFUSED || number == EACCES || number == EPERM;
}

static enum memcg_monitor_result by_any(struct memcg_monitor *new, const char *group, const struct target *target,
					const char *line, const struct memcg_monitor_options *options,
					struct memcg_monitor_error *error)
{
	const char *socket = or_default(options->socket, MEMCG_MONITOR_SOCKET);
	const char *view = or_default(options->view, MEMCG_MONITOR_VIEW);
	char control[PATH_MAX] = "";
	enum memcg_monitor_result result;
	struct memcg_monitor_error own;

	if (!error)
		error = &own;
	if (*view)
		event_control(control, group, view, or_default(options->cgroup_root, MEMCG_MONITOR_CGROUP_ROOT), exists);
	if (*socket) {
		result = connect_to(socket, &new->connection, error);
		if (result && (!*control || !falls_back(error->number)))
			return result;
		if (!result) {
			/* Only a group of the view itself goes when the view goes. */
			if (*control && is_beside(control, target->mark.path) && !hold(new, control))
				return fail(error, MEMCG_MONITOR_FILE, errno, "open %s", control);
			result = at_socket(new, target, line, error);
			if (result)
				return result;
			snprintf(new->route, sizeof(new->route), "%s", socket);
			if (options->drop_connection) {
				close(new->connection);
				new->connection = -1;
			}
			return MEMCG_MONITOR_OK;
		}
	}
	if (!*control)
		return fail(error, MEMCG_MONITOR_SYSCALL, ENOENT, "%s has no " EVENT_CONTROL, group);
	return at_view(new, control, line, error, *socket != '\0');
}

enum memcg_monitor_result memcg_monitor_register(const char *group, const char *file, const char *args,
						 const struct memcg_monitor_options *options,
						 struct memcg_monitor **registration,
						 struct memcg_monitor_error *error)
{
	static const struct memcg_monitor_options usual;
	char line[LARGEST_LINE + 1];
	struct memcg_monitor *new;
	struct target target;
	enum memcg_monitor_result result = open_target(&target, group, file, error);

	*registration = NULL;
	if (result)
		return result;
	new = new_registration(error);
	result = new ? make_line(line, new->event, &target, args, error) : MEMCG_MONITOR_SYSCALL;
	if (!result)
		result = by_any(new, group, &target, line, options ? options : &usual, error);
	close(target.fd);
	if (result) {
		memcg_monitor_close(new);
		return result;
	}
	/* An eventfd has no packets. */
	free(new->packet);
	new->packet = NULL;
	new->mark = target.mark;
	*registration = new;
	return MEMCG_MONITOR_OK;
}

enum memcg_monitor_result memcg_monitor_follow(const char *group, const char *file, const char *args,
					       const struct memcg_monitor_options *options,
					       struct memcg_monitor **follower,
					       struct memcg_monitor_error *error)
{
	const char *socket = or_default(options ? options->control_socket : NULL, MEMCG_MONITOR_CONTROL_SOCKET);
	char line[LARGEST_LINE + 1];
	struct memcg_monitor *new;
	struct target target;
	enum memcg_monitor_result result = open_target(&target, group, file, error);

	*follower = NULL;
	if (result)
		return result;
	new = new_registration(error);
	result = new ? make_line(line, new->event, &target, args, error) : MEMCG_MONITOR_SYSCALL;
	if (!result)
		result = connect_to(socket, &new->connection, error);
	if (!result) {
		make_listen(new->packet, line);
		result = send_packet(new->connection, new->packet, new->event, target.fd, error);
	}
	if (!result)
		result = receive(new->connection, new->packet, 0, error);
	if (!result)
		result = decode(new->packet, new->packet + LARGEST_ANSWER + 1, NULL, error);
	close(target.fd);
	if (result) {
		memcg_monitor_close(new);
		return result;
	}
	new->is_follower = true;
	snprintf(new->route, sizeof(new->route), "%s", socket);
	*follower = new;
	return MEMCG_MONITOR_OK;
}

/* How it stands with the group and the view: OK while both are there. */
static enum memcg_monitor_result look(const struct memcg_monitor *registration, struct memcg_monitor_error *error)
{
	const struct mark *mark = &registration->mark;
	struct stat found;
	bool is_over = registration->view >= 0 && fstat(registration->view, &found) < 0 && is_agent_gone(errno);

	/* First: by names the view of the next agent is the same, with or without the group. */
	if (is_over && registration->connection < 0)
		return view_gone(error);
	if (stat(mark->path, &found) < 0) {
		if (is_agent_gone(errno))
			return view_gone(error);
		/* ENODEV: the group went between the look-up and the look. */
		if (errno != ENOENT && errno != ENODEV)
			return fail(error, MEMCG_MONITOR_FILE, errno, "look at %s", mark->path);
	} else if (found.st_dev == mark->device && found.st_ino == mark->inode) {
		/* A group that has left a view which is still there is being removed. */
		if (registration->connection < 0 && *registration->served && !exists(registration->served) &&
		    !has_view_above(registration->served))
			return view_gone(error);
		return MEMCG_MONITOR_OK;
	}
	if (*registration->served && is_beside(registration->served, mark->path) &&
	    (is_over || !has_view_above(mark->path)))
		return view_gone(error);
	return MEMCG_MONITOR_REMOVED;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Polls until the deadline, and once at least: what is there already is seen without any time. TIMED_OUT
 * where nothing is there then. */
static enum memcg_monitor_result poll_until(struct pollfd *watched, int count, bool has_end, int64_t end, int most_ms,
					    struct memcg_monitor_error *error)
{
	int64_t left = has_end ? end - now_ms() : -1;
	bool is_over = has_end && left <= 0;
	int ready;

	if (is_over)
		left = 0;
	if (most_ms >= 0 && (left < 0 || left > most_ms))
		left = most_ms;
	ready = poll(watched, (nfds_t)count, (int)left);
	if (ready < 0 && errno != EINTR)
		return fail(error, MEMCG_MONITOR_SYSCALL, errno, "poll");
	return is_over && ready <= 0 ? MEMCG_MONITOR_TIMED_OUT : MEMCG_MONITOR_OK;
}

enum memcg_monitor_result memcg_monitor_wait(struct memcg_monitor *registration, int timeout_ms, uint64_t *signals,
					     struct memcg_monitor_error *error)
{
	int64_t end = timeout_ms < 0 ? 0 : now_ms() + timeout_ms;
	enum memcg_monitor_result result;

	*signals = 0;
	for (;;) {
		uint64_t count = 0;
		bool has_failed = read(registration->event, &count, sizeof(count)) < 0;
		struct pollfd watched[2] = {
			{ .fd = registration->event, .events = POLLIN },
			{ .fd = registration->connection, .events = POLLIN },
		};
		bool looks = registration->connection < 0 && *registration->served;

		if (has_failed && errno != EAGAIN && errno != EINTR)
			return fail(error, MEMCG_MONITOR_SYSCALL, errno, "read of the eventfd");
		/* Kept until they are reported, also when the look fails. */
		registration->pending += count;
		result = registration->is_view_gone ? view_gone(error) : look(registration, error);
		if (result) {
			/* A view that comes back is another agent's, without this registration. */
			registration->is_view_gone = result == MEMCG_MONITOR_ENDED;
			if (result == MEMCG_MONITOR_ENDED || result == MEMCG_MONITOR_REMOVED)
				registration->pending = 0;
			return result;
		}
		if (registration->pending) {
			*signals = registration->pending;
			registration->pending = 0;
			return MEMCG_MONITOR_OK;
		}
		result = poll_until(watched, 2, timeout_ms >= 0, end, looks ? look_ms : -1, error);
		if (result)
			return result;
		if (watched[1].revents && !watched[0].revents) {
			close(registration->connection);
			registration->connection = -1;
			return fail(error, MEMCG_MONITOR_ENDED, 0,
				    "the agent ended; signals go on once an agent that keeps registrations (--supervised, "
				    "or a descriptor store) is back; after any other, close this and register again");
		}
	}
}

enum memcg_monitor_result memcg_monitor_wait_event(struct memcg_monitor *follower, int timeout_ms,
						   struct memcg_monitor_event *event, struct memcg_monitor_error *error)
{
	int64_t end = timeout_ms < 0 ? 0 : now_ms() + timeout_ms;
	struct pollfd watched = { .fd = follower->connection, .events = POLLIN };
	enum memcg_monitor_result result;

	if (follower->is_removed)
		return MEMCG_MONITOR_REMOVED;
	/* A poll that a signal interrupted says nothing: the receive does not wait. */
	while ((result = receive(follower->connection, follower->packet, MSG_DONTWAIT, error)) ==
	       MEMCG_MONITOR_TIMED_OUT) {
		result = poll_until(&watched, 1, timeout_ms >= 0, end, -1, error);
		if (result)
			return result;
	}
	if (!result)
		result = decode(follower->packet, follower->packet + LARGEST_ANSWER + 1, event, error);
	if (!result)
		follower->is_removed = !strcmp(event->event, "removed");
	return result;
}

int memcg_monitor_fd(const struct memcg_monitor *registration)
{
	return registration->is_follower ? registration->connection : registration->event;
}

const char *memcg_monitor_route(const struct memcg_monitor *registration)
{
	return registration->route;
}

void memcg_monitor_close(struct memcg_monitor *registration)
{
	if (!registration)
		return;
	if (registration->event >= 0)
		close(registration->event);
	if (registration->connection >= 0)
		close(registration->connection);
	if (registration->view >= 0)
		close(registration->view);
	free(registration->packet);
	free(registration);
}
