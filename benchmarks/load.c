/* The load of the benchmarks: a server on loopback, and clients that reach it through SOCKS5.
 *
 *   load server PORT                            until it is killed; prints "ready" when it listens
 *   load bulk   PROXY PORT down|up CONNS BYTES  BYTES on each of CONNS connections at once
 *   load conn   PROXY PORT COUNT PARALLEL       new connections, one byte there and one back
 *   load idle   PROXY PORT COUNT                opens COUNT connections, holds them until stdin ends
 *
 * The server's protocol: 'D' and a length of 8 bytes (big-endian): it sends as many; 'U' and a
 * length: it reads as many, then answers one byte; 'E': it answers one byte.
 * Every client prints one line of JSON; any failure ends it with status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 * 1024, MAX_FDS = 65536, MAX_THREADS = 256, STEP_LIMIT_S = 60 };

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "the connection ended");
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void no_delay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* ---- server ---------------------------------------------------------------------------------- */

struct peer {
    unsigned char head[9];
    int have;      /* bytes of the head */
    uint64_t left; /* bytes still to send or to read */
};

static struct peer peers[MAX_FDS];
static char chunk[CHUNK];

/* One event's work; 0 when the connection is over. */
static int serve(int poll, int fd)
{
    struct peer *p = &peers[fd];
    ssize_t n;
    if (p->have == 9 && p->head[0] == 'D') {
        n = send(fd, chunk, p->left < CHUNK ? p->left : CHUNK, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN;
        p->left -= (uint64_t)n;
        if (p->left == 0) {
            struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
            p->have = 0;
            epoll_ctl(poll, EPOLL_CTL_MOD, fd, &e);
        }
        return 1;
    }
    if (p->have == 9) {
        n = recv(fd, chunk, p->left < CHUNK ? p->left : CHUNK, 0);
        if (n <= 0)
            return n < 0 && errno == EAGAIN;
        p->left -= (uint64_t)n;
        if (p->left > 0)
            return 1;
        p->have = 0;
        return send(fd, "U", 1, MSG_NOSIGNAL) == 1;
    }
    n = recv(fd, p->head + p->have, p->have == 0 ? 1 : (size_t)(9 - p->have), 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    p->have += (int)n;
    if (p->head[0] == 'E') {
        p->have = 0;
        return send(fd, "E", 1, MSG_NOSIGNAL) == 1;
    }
    if (p->head[0] != 'D' && p->head[0] != 'U')
        return 0;
    if (p->have == 9) {
        p->left = 0;
        for (int i = 1; i < 9; i++)
            p->left = p->left << 8 | p->head[i];
        if (p->left == 0)
            return 0;
        if (p->head[0] == 'D') {
            struct epoll_event e = {.events = EPOLLOUT, .data.fd = fd};
            epoll_ctl(poll, EPOLL_CTL_MOD, fd, &e);
        }
    }
    return 1;
}

static void server(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in a = loopback(port);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096))
        fail("listen");
    int poll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &e);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (!serve(poll, fd))
                    close(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MAX_FDS) {
                    close(fd);
                    continue;
                }
                no_delay(fd);
                memset(&peers[fd], 0, sizeof peers[fd]);
                e = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &e);
            }
        }
    }
}

/* ---- clients --------------------------------------------------------------------------------- */

static int proxy_port, target_port, parallel;
static long total;
static int upwards;
static uint64_t each;
static atomic_long next_job;
static double *took;
static pthread_barrier_t barrier;

static void put(int fd, const void *data, size_t size)
{
    for (const char *p = data; size > 0;) {
        errno = 0;
        ssize_t n = send(fd, p, size, MSG_NOSIGNAL);
        if (n <= 0)
            fail("send");
        p += n;
        size -= (size_t)n;
    }
}

static void get(int fd, void *data, size_t size)
{
    for (char *p = data; size > 0;) {
        errno = 0;
        ssize_t n = recv(fd, p, size, 0);
        if (n <= 0)
            fail("receive");
        p += n;
        size -= (size_t)n;
    }
}

static int through_proxy(void)
{
    struct sockaddr_in a = loopback(proxy_port);
    struct timeval limit = {.tv_sec = STEP_LIMIT_S};
    unsigned char answer[10], request[10] = {5, 1, 0, 1, 127, 0, 0, 1};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        fail("socket");
    no_delay(fd);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&a, sizeof a))
        fail("connect");
    put(fd, "\5\1\0", 3);
    get(fd, answer, 2);
    if (answer[0] != 5 || answer[1] != 0)
        fail("SOCKS greeting refused");
    request[8] = (unsigned char)(target_port >> 8);
    request[9] = (unsigned char)target_port;
    put(fd, request, 10);
    get(fd, answer, 10);
    if (answer[1] != 0 || answer[3] != 1)
        fail("SOCKS request refused");
    return fd;
}

static void echo(int fd)
{
    char byte;
    put(fd, "E", 1);
    get(fd, &byte, 1);
    if (byte != 'E')
        fail("wrong echo");
}

static void *bulk_thread(void *unused)
{
    unsigned char head[9] = {upwards ? 'U' : 'D'};
    char *buffer = calloc(1, CHUNK);
    int fd = through_proxy();
    echo(fd); /* the whole way is open before the clock starts */
    for (int i = 0; i < 8; i++)
        head[1 + i] = (unsigned char)(each >> (56 - 8 * i));
    pthread_barrier_wait(&barrier);
    put(fd, head, 9);
    for (uint64_t left = each; left > 0;) {
        size_t size = left < CHUNK ? (size_t)left : CHUNK;
        if (upwards) {
            put(fd, buffer, size);
        } else {
            errno = 0;
            ssize_t n = recv(fd, buffer, size, 0);
            if (n <= 0)
                fail("receive");
            size = (size_t)n;
        }
        left -= size;
    }
    if (upwards)
        get(fd, buffer, 1);
    pthread_barrier_wait(&barrier);
    close(fd);
    free(buffer);
    return unused;
}

static void *conn_thread(void *unused)
{
    for (long i; (i = atomic_fetch_add(&next_job, 1)) < total;) {
        double start = now();
        int fd = through_proxy();
        echo(fd);
        took[i] = now() - start;
        close(fd);
    }
    return unused;
}

static void *idle_thread(void *unused)
{
    while (atomic_fetch_add(&next_job, 1) < total)
        echo(through_proxy());
    return unused;
}

static void start(pthread_t *threads, void *(*body)(void *))
{
    if (parallel < 1 || parallel > MAX_THREADS)
        fail("too many threads");
    for (int i = 0; i < parallel; i++)
        if (pthread_create(&threads[i], NULL, body, NULL))
            fail("thread");
}

static void join(pthread_t *threads)
{
    for (int i = 0; i < parallel; i++)
        pthread_join(threads[i], NULL);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    pthread_t threads[MAX_THREADS];
    const char *mode = argc > 1 ? argv[1] : "";
    double begin;
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && !strcmp(mode, "server"))
        server(atoi(argv[2]));
    if (argc >= 4) {
        proxy_port = atoi(argv[2]);
        target_port = atoi(argv[3]);
    }
    if (argc == 7 && !strcmp(mode, "bulk")) {
        upwards = !strcmp(argv[4], "up");
        parallel = atoi(argv[5]);
        each = strtoull(argv[6], NULL, 10);
        pthread_barrier_init(&barrier, NULL, (unsigned)parallel + 1);
        start(threads, bulk_thread);
        pthread_barrier_wait(&barrier);
        begin = now();
        pthread_barrier_wait(&barrier);
        printf("{\"seconds\": %.6f}\n", now() - begin);
        join(threads);
    } else if (argc == 6 && !strcmp(mode, "conn") && atol(argv[4]) > 0) {
        total = atol(argv[4]);
        parallel = atoi(argv[5]);
        took = calloc((size_t)total, sizeof *took);
        begin = now();
        start(threads, conn_thread);
        join(threads);
        double seconds = now() - begin;
        qsort(took, (size_t)total, sizeof *took, ascending);
        printf("{\"per_second\": %.3f, \"p50_ms\": %.4f, \"p99_ms\": %.4f}\n",
               (double)total / seconds, took[total / 2] * 1e3, took[total * 99 / 100] * 1e3);
    } else if (argc == 5 && !strcmp(mode, "idle")) {
        char byte;
        total = atol(argv[4]);
        parallel = 32;
        start(threads, idle_thread);
        join(threads);
        printf("{\"open\": %ld}\n", total);
        fflush(stdout);
        while (read(0, &byte, 1) > 0)
            continue;
    } else {
        fputs("load: server | bulk | conn | idle; see the top of load.c\n", stderr);
        return 2;
    }
    return 0;
}
