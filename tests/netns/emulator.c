/* A path between two hosts: two TUN devices in two network namespaces, and what lies between.
 *
 *   emulator SEED NAMESPACE_A DEVICE_A NAMESPACE_B DEVICE_B
 *
 * The namespaces are paths (/run/netns/x, /proc/1/fd/7). The devices are made, and go when the program
 * ends: at the end of its standard input, so that it never outlives its owner. It prints "ready", then
 * answers each line on standard input with one line on standard output:
 *
 *   set ab|ba|both NAME=VALUE...   "ok", or "error: ..." and nothing changed
 *   stats                          one line of JSON: for each direction what was counted
 *   clear                          "ok": counts from nought again
 *
 *   delay_us     one way, after the bottleneck          jitter_us    uniform, plus or minus
 *   jitter_reorders  1: packets may pass each other     loss         0..1, each packet for itself
 *   burst_enter, burst_leave  0..1: per packet, chance to enter and to leave a state that loses all
 *   reorder      0..1: chance to be held back           reorder_us   for so long more
 *   duplicate    0..1                                   rate         bits per second of IP, 0: no limit
 *   queue        bytes before the bottleneck, the rest is dropped (tail); counts only with a rate
 *   black_hole   1: nothing passes, nothing is told     mtu          larger packets are dropped
 *   tell_mtu     1: ... and the sender hears of it (ICMP fragmentation needed, ICMPv6 too big)
 *
 *     TUN -> black hole, mtu -> queue, rate -> loss, bursts -> delay, jitter, reorder, duplicate -> TUN
 *
 * A lost packet has used the bottleneck. A change of rate or delay concerns packets that come later.
 *
 * After every round of work it rests, 0.1 ms or (with ten packets and more in a round) up to 0.5 ms, as
 * a network card moderates its interrupts: most of the cost of a packet is waking who waits for it. So a
 * packet is late by up to that, and never early; an idle path sleeps.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOT_SIZE = 2048,    /* the largest packet */
    SLOTS = 1 << 16,     /* packets under way in both directions; more are dropped, as "overflow" */
    BATCH = 256,         /* packets read from one device in one round */
    REST_NS_MIN = 100000,
    REST_NS_MAX = 500000,
    REST_NS_EACH = 50000,
    LINE_SIZE = 1024,
};

struct settings {
    double delay_us, jitter_us, jitter_reorders, loss, burst_enter, burst_leave, reorder, reorder_us,
        duplicate, rate, queue, black_hole, mtu, tell_mtu;
};

static const struct {
    const char *name;
    size_t offset;
    double max;
} names[] = {
#define SETTING(name, max) {#name, offsetof(struct settings, name), max}
    SETTING(delay_us, 60e6),  SETTING(jitter_us, 60e6), SETTING(jitter_reorders, 1),
    SETTING(loss, 1),         SETTING(burst_enter, 1),  SETTING(burst_leave, 1),
    SETTING(reorder, 1),      SETTING(reorder_us, 60e6), SETTING(duplicate, 1),
    SETTING(rate, 1e11),      SETTING(queue, 1e9),      SETTING(black_hole, 1),
    SETTING(mtu, SLOT_SIZE),  SETTING(tell_mtu, 1),
};
enum { NAMES = sizeof names / sizeof *names };

struct counters {
    uint64_t packets_in, bytes_in, packets_out, bytes_out, lost, dropped, swallowed, too_big, duplicated,
        held_back, overflow, refused, queue_max;
};

struct due {
    int64_t at;
    uint64_t serial; /* equal times keep their order */
    uint32_t slot;
    uint32_t size;
};

struct departure {
    int64_t at;
    uint32_t size;
};

struct direction {
    struct settings is;
    struct counters count;
    int source, sink; /* devices */
    uint64_t random;
    int in_burst;
    int64_t busy_until; /* the bottleneck sends what was accepted until then */
    int64_t last_due;
    struct departure departures[SLOTS]; /* a ring: what waits for the bottleneck */
    uint32_t first, waiting;
    uint64_t queued; /* bytes of it */
    struct due heap[SLOTS];
    uint32_t heaped;
};

static struct direction ways[2];
static unsigned char slots[SLOTS][SLOT_SIZE];
static uint32_t free_slots[SLOTS], frees;
static uint64_t serial;

static void fail(const char *what)
{
    fprintf(stderr, "emulator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- chance: splitmix64 ----------------------------------------------------------------------- */

static double chance(struct direction *w) /* 0 <= x < 1 */
{
    uint64_t z = w->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int happens(struct direction *w, double probability)
{
    return probability > 0 && chance(w) < probability;
}

/* ---- packets that are under way: a heap by time ----------------------------------------------- */

static int is_before(const struct due *a, const struct due *b)
{
    return a->at != b->at ? a->at < b->at : a->serial < b->serial;
}

static void push(struct direction *w, struct due d)
{
    uint32_t i = w->heaped++;
    for (; i > 0 && is_before(&d, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = d;
}

static struct due pop(struct direction *w)
{
    struct due first = w->heap[0], last = w->heap[--w->heaped];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < w->heaped; i = child) {
        if (child + 1 < w->heaped && is_before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!is_before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return first;
}

/* How many packets were due. */
static int deliver(struct direction *w, int64_t now)
{
    int count = 0;
    for (; w->heaped > 0 && w->heap[0].at <= now; count++) {
        struct due d = pop(w);
        if (write(w->sink, slots[d.slot], d.size) == (ssize_t)d.size) {
            w->count.packets_out++;
            w->count.bytes_out += d.size;
        } else {
            w->count.refused++; /* the device is down */
        }
        free_slots[frees++] = d.slot;
    }
    return count;
}

/* ---- a packet too large: telling its sender ---------------------------------------------------- */

static uint16_t checksum(const unsigned char *data, size_t size, uint32_t sum)
{
    for (size_t i = 0; i < size; i++)
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void put16(unsigned char *at, uint32_t value)
{
    at[0] = (unsigned char)(value >> 8);
    at[1] = (unsigned char)value;
}

/* It comes from the packet's destination, so that no filter of the sender's finds it odd. */
static void tell_mtu(struct direction *w, const unsigned char *packet, size_t size, uint32_t mtu)
{
    unsigned char m[1280] = {0};
    size_t all;
    if (packet[0] >> 4 == 4 && packet[6] & 0x40) { /* don't fragment */
        size_t quoted = size < 548 ? size : 548;   /* RFC 1812: 576 bytes in all */
        all = 28 + quoted;
        m[0] = 0x45;
        put16(m + 2, (uint32_t)all);
        m[8] = 64;
        m[9] = 1;
        memcpy(m + 12, packet + 16, 4);
        memcpy(m + 16, packet + 12, 4);
        put16(m + 10, checksum(m, 20, 0));
        m[20] = 3;
        m[21] = 4;
        put16(m + 26, mtu);
        memcpy(m + 28, packet, quoted);
        put16(m + 22, checksum(m + 20, all - 20, 0));
    } else if (packet[0] >> 4 == 6) {
        size_t quoted = size < 1232 ? size : 1232; /* RFC 4443: the least IPv6 MTU in all */
        all = 48 + quoted;
        m[0] = 0x60;
        put16(m + 4, (uint32_t)(8 + quoted));
        m[6] = 58;
        m[7] = 64;
        memcpy(m + 8, packet + 24, 16);
        memcpy(m + 24, packet + 8, 16);
        m[40] = 2;
        put16(m + 46, mtu);
        memcpy(m + 48, packet, quoted);
        put16(m + 42, checksum(m + 8, all - 8, (uint32_t)(8 + quoted) + 58));
    } else {
        return;
    }
    if (write(w->source, m, all) != (ssize_t)all)
        w->count.refused++;
}

/* ---- a packet comes ---------------------------------------------------------------------------- */

/* When it has passed the bottleneck; -1 when the queue before that is full. */
static int64_t pass_bottleneck(struct direction *w, uint32_t size, int64_t now)
{
    if (w->is.rate <= 0 && w->waiting == 0)
        return now;
    while (w->waiting > 0 && w->departures[w->first].at <= now) {
        w->queued -= w->departures[w->first].size;
        w->first = (w->first + 1) % SLOTS;
        w->waiting--;
    }
    if (w->waiting == SLOTS || (double)(w->queued + size) > w->is.queue) {
        w->count.dropped++;
        return -1;
    }
    int64_t begin = w->busy_until > now ? w->busy_until : now;
    w->busy_until = begin + (w->is.rate > 0 ? (int64_t)(size * 8e9 / w->is.rate) : 0);
    w->departures[(w->first + w->waiting++) % SLOTS] = (struct departure){w->busy_until, size};
    w->queued += size;
    if (w->queued > w->count.queue_max)
        w->count.queue_max = w->queued;
    return w->busy_until;
}

static int is_lost(struct direction *w)
{
    if (happens(w, w->in_burst ? w->is.burst_leave : w->is.burst_enter))
        w->in_burst = !w->in_burst;
    return w->in_burst || happens(w, w->is.loss);
}

static int64_t arrival(struct direction *w, int64_t at)
{
    int64_t due = at + (int64_t)(w->is.delay_us * 1e3);
    if (w->is.jitter_us > 0) {
        due += (int64_t)((2 * chance(w) - 1) * w->is.jitter_us * 1e3);
        if (due < at)
            due = at;
    }
    if (happens(w, w->is.reorder)) {
        w->count.held_back++;
        return due + (int64_t)(w->is.reorder_us * 1e3);
    }
    if (w->is.jitter_reorders == 0 && due < w->last_due)
        due = w->last_due;
    w->last_due = due;
    return due;
}

/* Its slot was taken from free_slots; it goes back there, or onto the heap. */
static void take(struct direction *w, uint32_t slot, uint32_t size, int64_t now)
{
    int64_t at = -1;
    w->count.packets_in++;
    w->count.bytes_in += size;
    if (w->is.black_hole > 0) {
        w->count.swallowed++;
    } else if (size > w->is.mtu) {
        w->count.too_big++;
        if (w->is.tell_mtu > 0)
            tell_mtu(w, slots[slot], size, (uint32_t)w->is.mtu);
    } else if ((at = pass_bottleneck(w, size, now)) >= 0 && is_lost(w)) {
        w->count.lost++;
        at = -1;
    }
    if (at < 0) {
        free_slots[frees++] = slot;
        return;
    }
    push(w, (struct due){arrival(w, at), serial++, slot, size});
    if (happens(w, w->is.duplicate) && frees > 0) {
        uint32_t copy = free_slots[--frees];
        memcpy(slots[copy], slots[slot], size);
        w->count.duplicated++;
        push(w, (struct due){arrival(w, at), serial++, copy, size});
    }
}

/* How many packets came. */
static int read_all(struct direction *w, int64_t now)
{
    int count = 0;
    for (; count < BATCH; count++) {
        unsigned char spill[SLOT_SIZE];
        uint32_t slot = frees > 0 ? free_slots[frees - 1] : 0;
        ssize_t size = read(w->source, frees > 0 ? slots[slot] : spill, SLOT_SIZE);
        if (size <= 0)
            break;
        if (frees == 0) {
            w->count.overflow++;
            continue;
        }
        frees--;
        take(w, slot, (uint32_t)size, now);
    }
    return count;
}

/* ---- control ----------------------------------------------------------------------------------- */

/* Reads words like loss=0.1 into `to`; NULL, or what is wrong. */
static const char *read_settings(char *words, struct settings *to)
{
    static char problem[LINE_SIZE + 32];
    for (char *rest, *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(word, '='), *end;
        int i = 0;
        snprintf(problem, sizeof problem, "what is '%s'?", word);
        if (!value)
            return problem;
        *value++ = 0;
        while (i < NAMES && strcmp(names[i].name, word))
            i++;
        if (i == NAMES)
            return problem;
        double number = strtod(value, &end);
        if (end == value || *end || !(number >= 0 && number <= names[i].max))
            return problem;
        *(double *)((char *)to + names[i].offset) = number;
    }
    return NULL;
}

static void set(char *words)
{
    char *where = strsep(&words, " ");
    int from = !strcmp(where, "ba"), to = strcmp(where, "ab") ? 2 : 1;
    struct settings changed[2] = {ways[0].is, ways[1].is};
    if (!words || (strcmp(where, "ab") && strcmp(where, "ba") && strcmp(where, "both"))) {
        puts("error: set ab|ba|both NAME=VALUE...");
        return;
    }
    for (int i = from; i < to; i++) {
        char copy[LINE_SIZE];
        snprintf(copy, sizeof copy, "%s", words);
        const char *problem = read_settings(copy, &changed[i]);
        if (problem) {
            printf("error: %s\n", problem);
            return;
        }
    }
    for (int i = from; i < to; i++)
        ways[i].is = changed[i];
    puts("ok");
}

static void stats(void)
{
    putchar('{');
    for (int i = 0; i < 2; i++) {
        struct counters *c = &ways[i].count;
        printf("%s\"%s\": {\"packets_in\": %" PRIu64 ", \"bytes_in\": %" PRIu64, i ? ", " : "",
               i ? "ba" : "ab", c->packets_in, c->bytes_in);
        printf(", \"packets_out\": %" PRIu64 ", \"bytes_out\": %" PRIu64, c->packets_out, c->bytes_out);
        printf(", \"lost\": %" PRIu64 ", \"dropped\": %" PRIu64 ", \"swallowed\": %" PRIu64, c->lost,
               c->dropped, c->swallowed);
        printf(", \"too_big\": %" PRIu64 ", \"duplicated\": %" PRIu64 ", \"held_back\": %" PRIu64,
               c->too_big, c->duplicated, c->held_back);
        printf(", \"overflow\": %" PRIu64 ", \"refused\": %" PRIu64 ", \"queue_max\": %" PRIu64 "}",
               c->overflow, c->refused, c->queue_max);
    }
    puts("}");
}

static void clear(void)
{
    for (int i = 0; i < 2; i++)
        memset(&ways[i].count, 0, sizeof ways[i].count);
    puts("ok");
}

/* 0 at the end of the input. */
static int listen_to_owner(void)
{
    static char text[LINE_SIZE];
    static size_t have;
    ssize_t size = read(0, text + have, sizeof text - 1 - have);
    if (size <= 0)
        return size < 0 && errno == EINTR;
    have += (size_t)size;
    text[have] = 0;
    for (char *end; (end = strchr(text, '\n'));) {
        *end = 0;
        if (!strncmp(text, "set ", 4))
            set(text + 4);
        else if (!strcmp(text, "stats"))
            stats();
        else if (!strcmp(text, "clear"))
            clear();
        else
            puts("error: set, stats or clear");
        have -= (size_t)(end + 1 - text);
        memmove(text, end + 1, have + 1);
    }
    if (have == sizeof text - 1) {
        puts("error: the line is too long");
        have = 0;
    }
    fflush(stdout);
    return 1;
}

/* ---- the whole --------------------------------------------------------------------------------- */

static int open_device(const char *namespace, const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int away = open(namespace, O_RDONLY | O_CLOEXEC);
    if (home < 0 || away < 0)
        fail(namespace);
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (setns(away, CLONE_NEWNET))
        fail("setns");
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC); /* it belongs where it was opened */
    if (fd < 0)
        fail("/dev/net/tun");
    if (ioctl(fd, TUNSETIFF, &request))
        fail(name);
    if (setns(home, CLONE_NEWNET))
        fail("setns");
    close(home);
    close(away);
    return fd;
}

static struct timespec span(int64_t ns)
{
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static void work(void)
{
    struct pollfd polled[3] = {
        {.fd = ways[0].source, .events = POLLIN},
        {.fd = ways[1].source, .events = POLLIN},
        {.fd = 0, .events = POLLIN},
    };
    for (;;) {
        int64_t now = now_ns(), next = INT64_MAX;
        int worked = 0;
        for (int i = 0; i < 2; i++) {
            worked += read_all(&ways[i], now);
            worked += deliver(&ways[i], now);
            if (ways[i].heaped > 0 && ways[i].heap[0].at < next)
                next = ways[i].heap[0].at;
        }
        if (worked > 0) { /* what comes meanwhile is handled together */
            int64_t ns = (int64_t)worked * REST_NS_EACH;
            struct timespec rest = span(ns < REST_NS_MIN ? REST_NS_MIN : ns > REST_NS_MAX ? REST_NS_MAX : ns);
            nanosleep(&rest, NULL);
            now = now_ns();
        }
        struct timespec left = span(next > now ? next - now : 0);
        if (ppoll(polled, 3, next == INT64_MAX ? NULL : &left, NULL) < 0 && errno != EINTR)
            fail("poll");
        if (polled[2].revents && !listen_to_owner())
            return;
    }
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fputs("emulator: SEED NAMESPACE_A DEVICE_A NAMESPACE_B DEVICE_B\n", stderr);
        return 2;
    }
    int ends[2] = {open_device(argv[2], argv[3]), open_device(argv[4], argv[5])};
    for (uint32_t i = 0; i < SLOTS; i++)
        free_slots[frees++] = SLOTS - 1 - i; /* the low ones first: memory that is used stays small */
    for (int i = 0; i < 2; i++) {
        ways[i].source = ends[i];
        ways[i].sink = ends[1 - i];
        ways[i].random = strtoull(argv[1], NULL, 10) * 2 + (unsigned)i;
        ways[i].is.mtu = SLOT_SIZE;
        ways[i].is.queue = 1 << 20;
    }
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    puts("ready");
    fflush(stdout);
    work();
    return 0;
}
