/*
 * Tests of the client: the vectors that all clients share, and a player of the agent.
 * cc -pthread -o test test.c && ./test ../vectors.json
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* The client's system calls that a test lets fail. */
static int stat_errno, fstat_errno, poll_errno;
static long file_system;

#define stat(path, found) test_stat(path, found)
#define fstat(fd, found) test_fstat(fd, found)
#define fstatfs(fd, found) test_fstatfs(fd, found)
#define poll(watched, count, timeout) test_poll(watched, count, timeout)
static int test_stat(const char *path, struct stat *found);
static int test_fstat(int fd, struct stat *found);
static int test_fstatfs(int fd, struct statfs *found);
static int test_poll(struct pollfd *watched, nfds_t count, int timeout);
#include "memcg_monitor.c"
#undef stat
#undef fstat
#undef fstatfs
#undef poll

#include <dirent.h>
#include <inttypes.h>
#include <pthread.h>

static int failures, checks;

#define CHECK(condition, ...)                                                      \
	do {                                                                       \
		checks++;                                                          \
		if (!(condition)) {                                                \
			failures++;                                                \
			printf("%s:%d: not %s: ", __func__, __LINE__, #condition); \
			printf(__VA_ARGS__);                                       \
			putchar('\n');                                             \
		}                                                                  \
	} while (0)

static int test_stat(const char *path, struct stat *found)
{
	errno = stat_errno;
	return stat_errno ? -1 : stat(path, found);
}

static int test_fstat(int fd, struct stat *found)
{
	errno = fstat_errno;
	return fstat_errno ? -1 : fstat(fd, found);
}

static int test_fstatfs(int fd, struct statfs *found)
{
	int result = fstatfs(fd, found);

	if (file_system)
		found->f_type = file_system;
	return result;
}

static int test_poll(struct pollfd *watched, nfds_t count, int timeout)
{
	errno = poll_errno;
	return poll_errno ? -1 : poll(watched, count, timeout);
}

static char *vectors;

static char *read_file(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text = calloc(1, 1 << 20);

	if (!file || !text || !fread(text, 1, (1 << 20) - 1, file)) {
		perror(path);
		exit(1);
	}
	fclose(file);
	return text;
}

/* The first vector of a kind, and the one after a vector; NULL at the end. */
static const char *first(const char *kind)
{
	const char *array = member(vectors, kind), *p = array ? skip_space(array + 1) : "]";

	CHECK(array && *p != ']', "there are no %s", kind);
	return *p == ']' ? NULL : p;
}

static const char *next(const char *element)
{
	const char *p = skip_value(element, 0);

	return p && *p == ',' ? skip_space(p + 1) : NULL;
}

static char texts[1 << 20], *texts_free = texts;

/* A member that is text, or "". */
static const char *text_of(const char *object, const char *name)
{
	const char *text = read_string(member(object, name), &texts_free);

	return text ? text : "";
}

static uint64_t number_of(const char *object, const char *name)
{
	uint64_t number = 0;

	read_number(member(object, name), &number);
	return number;
}

static bool is_true(const char *object, const char *name)
{
	const char *value = member(object, name);

	return value && !strncmp(value, "true", 4);
}

static bool same(const char *one, const char *other)
{
	return one == other || (one && other && !strcmp(one, other));
}

static bool is_member(const char *object, const char *name, const char *text)
{
	return same(read_string(member(object, name), &texts_free), text);
}

static void test_requests(void)
{
	/* The arguments are the caller's text; the names are constants. */
	for (const char *v = first("requests"); v; v = next(v))
		CHECK(is_control_file(text_of(v, "file")), "%s", text_of(v, "file"));
}

static void test_lines(void)
{
	for (const char *v = first("lines"); v; v = next(v)) {
		struct target target = { .fd = (int)number_of(v, "control_fd") };
		char line[LARGEST_LINE + 1], packet[6 * LARGEST_LINE + 20], room[LARGEST_LINE], *free = room;
		const char *wanted = text_of(v, "listen");

		CHECK(!make_line(line, (int)number_of(v, "event_fd"), &target, text_of(v, "args"), NULL), "a line");
		CHECK(same(line, text_of(v, "line")), "%s", line);
		make_listen(packet, line);
		CHECK(same(text_of(packet, "listen"), read_string(member(wanted, "listen"), &free)), "%s", packet);
		CHECK(same(skip_value(packet, 0), ""), "%s", packet);
	}
}

static void touch(const char *group, const char *name)
{
	char path[PATH_MAX];
	int fd;

	CHECK(join(path, group, name), "a path that is too long");
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, "0\n", 2) != 2) {
		perror(path);
		exit(1);
	}
	close(fd);
}

static void empty(const char *group)
{
	DIR *directory = opendir(group);
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		unlinkat(dirfd(directory), entry->d_name, 0);
	if (directory)
		closedir(directory);
}

static void in_group(char path[PATH_MAX], const char *group, const char *name)
{
	snprintf(path, PATH_MAX, "%s%s%s", group, *name ? "/" : "", name);
}

static void test_targets(void)
{
	for (const char *v = first("targets"); v; v = next(v)) {
		char group[] = "/tmp/memcg-monitor-test-XXXXXX", wanted[PATH_MAX];
		struct memcg_monitor_error error = { 0 };
		struct memcg_monitor seen = { .connection = -1, .view = -1 };
		const char *name = skip_space(member(v, "has") + 1), *file = text_of(v, "file");
		enum memcg_monitor_result result;
		struct target target;

		CHECK(mkdtemp(group), "mkdtemp");
		for (; *name == '"'; name = *name == ',' ? skip_space(name + 1) : name) {
			touch(group, read_string(name, &texts_free));
			name = skip_space(skip_string(name));
		}
		result = open_target(&target, group, file, &error);
		CHECK((int)number_of(v, "errno") == error.number, "%s: %s", file, error.text);
		CHECK(result == (error.number ? MEMCG_MONITOR_FILE : MEMCG_MONITOR_OK), "%s: %d", file, result);
		if (!result) {
			char args[PATH_MAX], other[PATH_MAX];

			in_group(wanted, group, text_of(v, "opens"));
			CHECK(same(target.path, wanted), "%s", target.path);
			in_group(wanted, group, text_of(v, "mark"));
			CHECK(same(target.mark.path, wanted), "%s", target.mark.path);
			snprintf(args, sizeof(args), "%s%s", target.prefix, text_of(v, "args"));
			CHECK(same(args, text_of(v, "sends")), "%s", args);
			close(target.fd);
			seen.mark = target.mark;
			CHECK(look(&seen, NULL) == MEMCG_MONITOR_OK, "%s", file);
			touch(group, "other");
			CHECK(join(other, group, "other"), "a path that is too long");
			rename(other, target.mark.path);
			CHECK(look(&seen, NULL) == MEMCG_MONITOR_REMOVED, "%s: a namesake is not the group", file);
		}
		empty(group);
		rmdir(group);
	}
}

static bool yes(const char *path)
{
	return *path;
}

static bool no(const char *path)
{
	return !*path;
}

static void test_event_controls(void)
{
	for (const char *v = first("event_controls"); v; v = next(v)) {
		char path[PATH_MAX];

		event_control(path, text_of(v, "group"), MEMCG_MONITOR_VIEW, MEMCG_MONITOR_CGROUP_ROOT,
			      is_true(v, "has") ? yes : no);
		CHECK(same(path, text_of(v, "path")), "%s: %s", text_of(v, "group"), path);
	}
}

static void test_falls_back(void)
{
	for (const char *v = first("falls_back"); v; v = next(v))
		CHECK(falls_back((int)number_of(v, "errno")) == is_true(v, "falls_back"), "%s", text_of(v, "name"));
}

static void check_outcome(const char *v, enum memcg_monitor_result result, const struct memcg_monitor_error *error)
{
	static const char *const outcomes[] = {
		[MEMCG_MONITOR_ENDED] = "ended",
		[MEMCG_MONITOR_REFUSED] = "refused",
		[MEMCG_MONITOR_ANSWER] = "not understood",
	};
	const char *packet = text_of(v, "packet"), *outcome = text_of(v, "outcome");

	if (result == MEMCG_MONITOR_OK) {
		CHECK(strstr("registered listening event", outcome), "%s: %s", packet, outcome);
		return;
	}
	CHECK(same(outcome, outcomes[result]), "%s: %d", packet, result);
	CHECK(error->result == result && error->number == (int)number_of(v, "errno"), "%s: %d", packet, error->number);
	CHECK(!member(v, "message") || is_member(v, "message", error->text), "%s: %s", packet, error->text);
}

static void test_answers(void)
{
	for (const char *v = first("answers"); v; v = next(v)) {
		struct memcg_monitor_error error = { 0 };

		check_outcome(v, check_answer(text_of(v, "packet"), &error), &error);
	}
}

static void check_number(const char *wanted, const char *name, bool has, uint64_t number)
{
	CHECK(has == (member(wanted, name) != NULL) && number == number_of(wanted, name), "%s", name);
}

static void check_signed(const char *wanted, const char *name, bool has, int64_t number)
{
	const char *value = member(wanted, name);

	CHECK(has == (value != NULL) && number == (value ? strtoll(value, NULL, 10) : 0), "%s", name);
}

/* Compares strings that lie one behind the other with an array. */
static void check_strings(const char *array, const char *strings, unsigned count)
{
	unsigned found = 0;

	CHECK(!array == !strings, "%s", array ? array : "");
	if (!array || !strings)
		return;
	for (array = skip_space(array + 1); *array != ']'; found++) {
		char *text = malloc(strlen(array) + 1), *free_room = text;

		CHECK(found < count && same(read_string(array, &free_room), strings), "%u: %s", found, strings);
		strings += strlen(strings) + 1;
		free(text);
		array = skip_space(skip_string(array));
		array = skip_space(array + (*array == ','));
	}
	CHECK(found == count, "%u", count);
}

static void check_victim(const char *w, const struct memcg_monitor_event *event)
{
	CHECK(is_member(w, "cgroup", event->victim_cgroup), "%s", w);
	CHECK(is_member(w, "comm", event->victim_comm), "%s", w);
	CHECK(is_member(w, "exe", event->victim_exe), "%s", w);
	CHECK(is_member(w, "unit", event->victim_unit), "%s", w);
	CHECK(is_member(w, "pod_uid", event->victim_pod_uid), "%s", w);
	CHECK(is_member(w, "container_id", event->victim_container_id), "%s", w);
	check_strings(member(w, "command"), event->victim_command, event->victim_command_count);
	CHECK(is_true(w, "command_cut") == event->is_victim_command_cut, "%s", w);
	check_signed(w, "oom_score_adj", event->has_victim_oom_score_adj, event->victim_oom_score_adj);
	check_number(w, "pid", event->has_victim_pid, event->victim_pid);
	check_number(w, "own_pid", event->has_victim_own_pid, event->victim_own_pid);
	check_number(w, "uid", event->has_victim_uid, event->victim_uid);
	check_number(w, "total_vm", event->has_victim_total_vm, event->victim_total_vm);
	check_number(w, "anon_rss", event->has_victim_anon_rss, event->victim_anon_rss);
	check_number(w, "file_rss", event->has_victim_file_rss, event->victim_file_rss);
	check_number(w, "shmem_rss", event->has_victim_shmem_rss, event->victim_shmem_rss);
	check_number(w, "swap", event->has_victim_swap, event->victim_swap);
	check_number(w, "page_tables", event->has_victim_page_tables, event->victim_page_tables);
}

static void test_events(void)
{
	for (const char *v = first("events"); v; v = next(v)) {
		const char *packet = text_of(v, "packet"), *w = member(v, "event"), *victim;
		bool is_listening = same(text_of(v, "outcome"), "listening");
		char *room = malloc(strlen(packet) + 1);
		struct memcg_monitor_error error = { 0 };
		struct memcg_monitor_event event;
		double seconds = 0;

		check_outcome(v, decode(packet, room, is_listening ? NULL : &event, &error), &error);
		if (w) {
			CHECK(read_seconds(member(w, "time"), &seconds) && seconds == event.time, "%s", packet);
			CHECK(is_member(w, "cgroup", event.cgroup), "%s: %s", packet, event.cgroup);
			CHECK(is_member(w, "event", event.event), "%s: %s", packet, event.event);
			CHECK(is_member(w, "on", event.on), "%s: %s", packet, event.on);
			CHECK(is_member(w, "direction", event.direction), "%s: %s", packet, event.direction);
			CHECK(is_member(w, "origin", event.origin), "%s: %s", packet, event.origin);
			CHECK(is_member(w, "level", event.level), "%s: %s", packet, event.level);
			check_number(w, "signals", true, event.signals);
			check_number(w, "lost", true, event.lost);
			check_number(w, "threshold", event.has_threshold, event.threshold);
			check_number(w, "usage", event.has_usage, event.usage);
			victim = member(w, "victim");
			CHECK(!victim == !event.victim_cgroup, "%s", packet);
			if (victim)
				check_victim(victim, &event);
			CHECK(is_member(w, "reason", event.reason), "%s", packet);
			CHECK(is_member(w, "spec", event.spec), "%s", packet);
			check_number(w, "id", true, event.id);
			check_number(w, "limit", event.has_limit, event.limit);
			check_number(w, "peak", event.has_peak, event.peak);
			check_signed(w, "growth", event.has_growth, event.growth);
			CHECK(is_true(w, "late") == event.is_late, "%s", packet);
		}
		free(room);
	}
}

/* ---- a player of the agent ---- */

struct player {
	char directory[64], socket[PATH_MAX];
	struct memcg_monitor_options options;
	const char *const *packets;
	int listener, connection, event;
	char line[LARGEST_LINE + 1];
	pthread_t thread;
};

static void *answer(void *argument)
{
	struct player *player = argument;
	struct iovec part = { .iov_base = player->line, .iov_len = LARGEST_LINE };
	union {
		struct cmsghdr header;
		char bytes[256];
	} rights;
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights,
				  .msg_controllen = sizeof(rights) };
	int descriptors[2] = { -1, -1 };

	player->connection = accept(player->listener, NULL, NULL);
	recvmsg(player->connection, &message, MSG_CMSG_CLOEXEC);
	if (CMSG_FIRSTHDR(&message) && CMSG_FIRSTHDR(&message)->cmsg_len == CMSG_LEN(sizeof(descriptors)))
		memcpy(descriptors, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(descriptors));
	player->event = descriptors[0];
	close(descriptors[1]);
	for (const char *const *packet = player->packets; *packet; packet++)
		send(player->connection, *packet, strlen(*packet), MSG_NOSIGNAL);
	return NULL;
}

/* Sends packets when a line and its two descriptors have come. */
static void play(struct player *player, const char *const *packets)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	memset(player, 0, sizeof(*player));
	strcpy(player->directory, "/tmp/memcg-monitor-test-XXXXXX");
	CHECK(mkdtemp(player->directory), "mkdtemp");
	touch(player->directory, USAGE_FILE);
	CHECK(join(player->socket, player->directory, "socket"), "a path that is too long");
	player->options.socket = player->options.control_socket = player->socket;
	player->packets = packets;
	strcpy(address.sun_path, player->socket);
	player->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	CHECK(!bind(player->listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	CHECK(!listen(player->listener, 1), "listen");
	pthread_create(&player->thread, NULL, answer, player);
}

/* Waits until the packets are sent. */
static void played(struct player *player)
{
	pthread_join(player->thread, NULL);
}

static void end(struct player *player)
{
	if (player->connection >= 0)
		close(player->connection);
	if (player->event >= 0)
		close(player->event);
	close(player->listener);
	empty(player->directory);
	rmdir(player->directory);
}

static void test_signals_are_counted_until_the_group_is_gone(void)
{
	static const char *const packets[] = { "0", NULL };
	struct memcg_monitor *registration;
	struct memcg_monitor_error error;
	struct player player;
	uint64_t signals;

	play(&player, packets);
	CHECK(!memcg_monitor_register(player.directory, MEMCG_MONITOR_USAGE, "8M", &player.options, &registration, &error),
	      "%s", error.text);
	played(&player);
	CHECK(strstr(player.line, " 8M"), "%s", player.line);
	CHECK(same(memcg_monitor_route(registration), player.socket), "%s", memcg_monitor_route(registration));
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_TIMED_OUT, "nothing came");
	eventfd_write(player.event, 3);
	CHECK(memcg_monitor_wait(registration, -1, &signals, &error) == MEMCG_MONITOR_OK && signals == 3, "three");
	/* What came before the end is counted first. */
	eventfd_write(player.event, 1);
	close(player.connection);
	player.connection = -1;
	CHECK(memcg_monitor_wait(registration, -1, &signals, &error) == MEMCG_MONITOR_OK && signals == 1, "one");
	CHECK(memcg_monitor_wait(registration, -1, &signals, &error) == MEMCG_MONITOR_ENDED, "the end");
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_TIMED_OUT, "once");
	eventfd_write(player.event, 5);
	CHECK(memcg_monitor_wait(registration, -1, &signals, &error) == MEMCG_MONITOR_OK && signals == 5, "kept");
	eventfd_write(player.event, 3);
	stat_errno = EIO;
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_FILE && signals == 0, "%s", error.text);
	stat_errno = 0;
	eventfd_write(player.event, 4);
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_OK && signals == 7,
	      "a look that fails loses no signal: %" PRIu64, signals);
	eventfd_write(player.event, 1);
	empty(player.directory);
	for (int i = 0; i < 2; i++)
		CHECK(memcg_monitor_wait(registration, -1, &signals, &error) == MEMCG_MONITOR_REMOVED, "removed");
	memcg_monitor_close(registration);
	end(&player);
}

static void test_the_end_is_seen_without_waiting(void)
{
	static const char *const packets[] = { "0", NULL };
	struct memcg_monitor *registration;
	struct memcg_monitor_error error;
	struct player player;
	uint64_t signals;

	play(&player, packets);
	CHECK(!memcg_monitor_register(player.directory, MEMCG_MONITOR_USAGE, "8M", &player.options, &registration, &error),
	      "%s", error.text);
	played(&player);
	eventfd_write(player.event, 2);
	close(player.connection);
	player.connection = -1;
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_OK && signals == 2, "two");
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_ENDED, "the end");
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_TIMED_OUT, "once");
	memcg_monitor_close(registration);
	end(&player);
}

static void test_a_refusal_carries_errno_and_text(void)
{
	static const char *const packets[] = { "-22 EINVAL: wrong byte", NULL };
	struct memcg_monitor *registration;
	struct memcg_monitor_error error;
	struct player player;

	play(&player, packets);
	CHECK(memcg_monitor_register(player.directory, MEMCG_MONITOR_USAGE, "1MB", &player.options, &registration,
				     &error) == MEMCG_MONITOR_REFUSED, "it is refused");
	CHECK(!registration && error.number == EINVAL && same(error.text, "EINVAL: wrong byte"), "%s", error.text);
	played(&player);
	end(&player);
}

static void test_a_follower_receives_causes_up_to_the_end(void)
{
	static const char *const packets[] = {
		"{\"type\":\"listening\"}",
		"{\"type\":\"event\",\"time\":1.0,\"cgroup\":\"/a\",\"event\":\"crossed\",\"signals\":1}",
		"{\"type\":\"event\",\"time\":2.0,\"cgroup\":\"/a\",\"event\":\"removed\",\"signals\":1}", NULL
	};
	struct memcg_monitor *follower;
	struct memcg_monitor_event event;
	struct memcg_monitor_error error;
	struct player player;

	for (int is_removed = 0; is_removed < 2; is_removed++) {
		static const char *const some[] = { "{\"type\":\"listening\"}", NULL };

		play(&player, is_removed ? packets : some);
		CHECK(!memcg_monitor_follow(player.directory, MEMCG_MONITOR_OOM, "", &player.options, &follower, &error),
		      "%s", error.text);
		played(&player);
		if (!is_removed) {
			CHECK(memcg_monitor_wait_event(follower, 0, &event, &error) == MEMCG_MONITOR_TIMED_OUT, "nothing");
			/* Signals that interrupt each poll do not make the wait longer. */
			poll_errno = EINTR;
			alarm(60);
			CHECK(memcg_monitor_wait_event(follower, 1, &event, &error) == MEMCG_MONITOR_TIMED_OUT, "EINTR");
			alarm(0);
			poll_errno = 0;
			close(player.connection);
			player.connection = -1;
			CHECK(memcg_monitor_wait_event(follower, -1, &event, &error) == MEMCG_MONITOR_ENDED, "the end");
		} else {
			CHECK(!memcg_monitor_wait_event(follower, -1, &event, &error), "%s", error.text);
			CHECK(same(event.event, "crossed"), "%s", event.event);
			CHECK(!memcg_monitor_wait_event(follower, -1, &event, &error), "%s", error.text);
			CHECK(memcg_monitor_wait_event(follower, -1, &event, &error) == MEMCG_MONITOR_REMOVED, "removed");
		}
		memcg_monitor_close(follower);
		end(&player);
	}
}

static void test_the_view_is_written_where_no_socket_is(void)
{
	char view[] = "/tmp/memcg-monitor-test-XXXXXX", group[PATH_MAX], control[PATH_MAX], none[PATH_MAX];
	struct memcg_monitor_options options = { .socket = none };
	struct memcg_monitor *registration;
	struct memcg_monitor_error error;
	uint64_t signals;

	look_ms = 1;
	CHECK(mkdtemp(view), "mkdtemp");
	CHECK(join(none, view, "none"), "a path that is too long");
	CHECK(join(group, view, "a"), "a path that is too long");
	CHECK(join(control, group, EVENT_CONTROL), "a path that is too long");
	mkdir(group, 0700);
	touch(view, EVENT_CONTROL);
	for (int is_end = 0; is_end < 2; is_end++) {
		enum memcg_monitor_result wanted = is_end ? MEMCG_MONITOR_ENDED : MEMCG_MONITOR_REMOVED;
		char *line;

		touch(group, EVENT_CONTROL);
		touch(group, MEMCG_MONITOR_USAGE);
		CHECK(!memcg_monitor_register(group, MEMCG_MONITOR_USAGE, "8M", &options, &registration, &error), "%s",
		      error.text);
		CHECK(same(memcg_monitor_route(registration), control), "%s", memcg_monitor_route(registration));
		line = read_file(control);
		CHECK(strstr(line, " 8M"), "%s", line);
		free(line);
		eventfd_write(memcg_monitor_fd(registration), 2);
		CHECK(!memcg_monitor_wait(registration, -1, &signals, &error) && signals == 2, "%s", error.text);
		if (is_end) {
			/* A look while a hung agent is killed. */
			stat_errno = ECONNABORTED;
			CHECK(!exists(control), "%s", control);
			CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == wanted, "%s", error.text);
			stat_errno = 0;
		}
		empty(group);
		if (is_end)
			empty(view);
		for (int i = 0; i < 2; i++)
			CHECK(memcg_monitor_wait(registration, -1, &signals, &error) == wanted, "%s", error.text);
		memcg_monitor_close(registration);
	}
	touch(group, MEMCG_MONITOR_USAGE);
	CHECK(!symlink("/dev/full", control), "%s", control);
	CHECK(memcg_monitor_register(group, MEMCG_MONITOR_USAGE, "8M", &options, &registration, &error) ==
	      MEMCG_MONITOR_REFUSED, "it is refused");
	CHECK(error.number == ENOSPC && strstr(error.text, "in the agent's log"), "%s", error.text);
	file_system = CGROUP_V1_MAGIC;
	CHECK(memcg_monitor_register(group, MEMCG_MONITOR_USAGE, "8M", &options, &registration, &error) ==
	      MEMCG_MONITOR_REFUSED, "the kernel refuses");
	file_system = 0;
	CHECK(error.number == ENOSPC && strstr(error.text, "kernel's own cgroup v1") && strstr(error.text, none) &&
	      !strstr(error.text, "log"), "%s", error.text);
	unlink(control);
	CHECK(memcg_monitor_register(group, MEMCG_MONITOR_USAGE, "8M", &options, &registration, &error) ==
	      MEMCG_MONITOR_SYSCALL, "there is no way");
	CHECK(error.number == ENOENT && strstr(error.text, "is `memcg-monitor agent` running?"), "%s", error.text);
	empty(group);
	rmdir(group);
	rmdir(view);
}

static int descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;

	while (directory && readdir(directory))
		count++;
	if (directory)
		closedir(directory);
	return count;
}

static void test_a_view_of_another_agent_at_the_same_path_is_the_end(void)
{
	static const char *const packets[] = { "0", NULL };
	char group[PATH_MAX], usage[PATH_MAX], none[PATH_MAX];
	struct memcg_monitor_options options = { .socket = none };
	struct memcg_monitor *registration;
	struct memcg_monitor_error error;
	struct player player;
	uint64_t signals;

	look_ms = 1;
	for (int is_group_there = 0; is_group_there < 2; is_group_there++) {
		char view[] = "/tmp/memcg-monitor-test-XXXXXX";
		int before = descriptors();

		CHECK(mkdtemp(view), "mkdtemp");
		CHECK(join(none, view, "none"), "a path that is too long");
		CHECK(join(group, view, "a"), "a path that is too long");
		CHECK(join(usage, group, MEMCG_MONITOR_USAGE), "a path that is too long");
		mkdir(group, 0700);
		touch(view, EVENT_CONTROL);
		touch(group, EVENT_CONTROL);
		touch(group, MEMCG_MONITOR_USAGE);
		CHECK(!memcg_monitor_register(group, MEMCG_MONITOR_USAGE, "8M", &options, &registration, &error), "%s",
		      error.text);
		if (!is_group_there)
			unlink(usage);
		/* All paths answer, and the view that took the registration does not. */
		fstat_errno = ENOTCONN;
		for (int i = 0; i < 2; i++)
			CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_ENDED, "the end");
		fstat_errno = 0;
		memcg_monitor_close(registration);
		CHECK(descriptors() == before, "%d instead of %d", descriptors(), before);
		empty(group);
		rmdir(group);
		empty(view);
		rmdir(view);
	}
	/* At the socket, a group of the view: its end is not the group's. */
	play(&player, packets);
	touch(player.directory, EVENT_CONTROL);
	touch(player.directory, MEMCG_MONITOR_USAGE);
	CHECK(!memcg_monitor_register(player.directory, MEMCG_MONITOR_USAGE, "8M", &player.options, &registration, &error),
	      "%s", error.text);
	played(&player);
	CHECK(join(usage, player.directory, MEMCG_MONITOR_USAGE), "a path that is too long");
	unlink(usage);
	fstat_errno = ECONNABORTED;
	CHECK(memcg_monitor_wait(registration, 0, &signals, &error) == MEMCG_MONITOR_ENDED, "the end");
	fstat_errno = 0;
	memcg_monitor_close(registration);
	end(&player);
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: test VECTORS\n");
		return 2;
	}
	vectors = read_file(argv[1]);
	test_requests();
	test_lines();
	test_targets();
	test_event_controls();
	test_falls_back();
	test_answers();
	test_events();
	test_signals_are_counted_until_the_group_is_gone();
	test_the_end_is_seen_without_waiting();
	test_a_refusal_carries_errno_and_text();
	test_a_follower_receives_causes_up_to_the_end();
	test_the_view_is_written_where_no_socket_is();
	test_a_view_of_another_agent_at_the_same_path_is_the_end();
	free(vectors);
	printf("%d checks, %d failed\n", checks, failures);
	return failures != 0;
}
