/* The load generator: a process of its own that costs the same for every event loop under test.
 *
 *     load HOST PORT        connects there for its orders: one line in, one line of JSON out; and before that the
 *                           line {"begin": 1} when the warm-up is over
 *
 * Orders (W = seconds of warm-up, S = seconds that count):
 *     echo  HOST PORT CONNECTIONS SIZE W S    one message outstanding on each connection, every byte compared
 *     udp   HOST PORT CONNECTIONS SIZE W S    the same with datagrams
 *     http  HOST PORT CONNECTIONS PATH W S    GET PATH on kept connections, answers as long as the first one
 *     churn HOST PORT PARALLEL SIZE W S       connect, one echoed message, close
 *     push  HOST PORT CONNECTIONS SIZE W S    send without pause, SIZE bytes a call
 *     pull  HOST PORT CONNECTIONS SIZE W S    receive without pause; byte n of the stream must be n % 256
 *     hold  HOST PORT CONNECTIONS 0 0 0       open connections and keep them ...
 *     drop  - - 0 0 0 0                       ... until now
 *
 * The warm-up lasts until every connection was answered once, and W seconds at least.
 * Linux: epoll. Windows: WSAPoll. One thread. load.py is the same for machines without a C compiler.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
#define BUSY (WSAGetLastError() == WSAEWOULDBLOCK)
#else
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
typedef int SOCKET;
#define INVALID_SOCKET (-1)
#define closesocket close
#define BUSY (errno == EAGAIN || errno == EWOULDBLOCK)
#endif

enum { CONNECTIONS_MAX = 20000, CHUNK = 1 << 18, BUCKETS = 64 * 40 };

typedef struct {
    SOCKET socket;
    char *message;            /* what is sent, and expected back */
    size_t sent, received;    /* of the message under way */
    uint64_t number, started; /* messages so far; when the present one began */
    int wants_write;
} Connection;

typedef struct {
    char verb[16], host[64], what[256];
    int port, connections;
    double warm, seconds;
    size_t size, answer_size; /* bytes of one message, and of what comes back for it */
} Order;

static Connection *connections;
static int held, silent; /* connections open; those of them that have not been answered yet */
static char scratch[CHUNK];
static uint64_t histogram[BUCKETS], counted, bytes, slowest;
static char failure[200];

/* -- time ------------------------------------------------------------------------------------------------------ */

static uint64_t now_ns(void) {
#ifdef _WIN32
    static LARGE_INTEGER frequency;
    LARGE_INTEGER count;
    if (!frequency.QuadPart) QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&count);
    return (uint64_t)((double)count.QuadPart * 1e9 / (double)frequency.QuadPart);
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

/* Log-linear: 32 steps to each power of two, so within 3 %. */
static int bucket_of(uint64_t ns) {
    int shift = 0;
    while (ns >= 64) { ns >>= 1; shift++; }
    int bucket = shift * 32 + (int)ns;
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double bucket_us(int bucket) {
    if (bucket < 64) return bucket / 1e3;
    int shift = (bucket - 32) / 32;
    return (double)((uint64_t)(bucket - shift * 32) << shift) / 1e3;
}

static void count_one(uint64_t ns) {
    counted++;
    histogram[bucket_of(ns)]++;
    if (ns > slowest) slowest = ns;
}

static double percentile(double share) {
    uint64_t wanted = (uint64_t)(share * (double)counted), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > wanted) return bucket_us(i);
    }
    return (double)slowest / 1e3;
}

/* -- sockets --------------------------------------------------------------------------------------------------- */

static int fail(const char *what) {
#ifdef _WIN32
    int code = WSAGetLastError();
#else
    int code = errno;
#endif
    if (!failure[0]) snprintf(failure, sizeof failure, "%s (error %d)", what, code);
    return -1;
}

static void set_nonblocking(SOCKET s) {
#ifdef _WIN32
    u_long on = 1;
    ioctlsocket(s, FIONBIO, &on);
#else
    fcntl(s, F_SETFL, fcntl(s, F_GETFL) | O_NONBLOCK);
#endif
}

static SOCKET connect_to(const char *host, int port, int type) {
    struct sockaddr_in address = {0};
    int on = 1;
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    inet_pton(AF_INET, host, &address.sin_addr);
    SOCKET s = socket(AF_INET, type, 0);
    if (s == INVALID_SOCKET) return s;
    if (connect(s, (struct sockaddr *)&address, sizeof address)) {
        closesocket(s);
        return INVALID_SOCKET;
    }
    if (type == SOCK_STREAM) setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&on, sizeof on);
    return s;
}

#ifdef _WIN32
static WSAPOLLFD *polled;
static int ready[CONNECTIONS_MAX], polled_count;
static void watch_begin(int count) { polled = calloc((size_t)count, sizeof *polled); polled_count = count; }
static void watch(int i, int wants_write, int is_new) {
    (void)is_new;
    polled[i].fd = connections[i].socket;
    polled[i].events = (short)(POLLRDNORM | (wants_write ? POLLWRNORM : 0));
}
static int watch_wait(int timeout_ms) {
    int count = 0;
    if (WSAPoll(polled, (ULONG)polled_count, timeout_ms) > 0)
        for (int i = 0; i < polled_count; i++)
            if (polled[i].revents) ready[count++] = i;
    return count;
}
static void watch_end(void) { free(polled); }
#else
static int poller;
static int ready[256];
static void watch_begin(int count) { (void)count; poller = epoll_create1(0); }
static void watch(int i, int wants_write, int is_new) {
    struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0u), .data.u32 = (uint32_t)i};
    epoll_ctl(poller, is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, connections[i].socket, &event);
}
static int watch_wait(int timeout_ms) {
    struct epoll_event events[256];
    int count = epoll_wait(poller, events, 256, timeout_ms);
    for (int i = 0; i < count; i++) ready[i] = (int)events[i].data.u32;
    return count;
}
static void watch_end(void) { close(poller); }
#endif

static void want_write(int i, int wanted) {
    if (connections[i].wants_write != wanted) {
        connections[i].wants_write = wanted;
        watch(i, wanted, 0);
    }
}

/* -- one connection -------------------------------------------------------------------------------------------- */

/* Sends what is left of the message; 0, or -1 when the connection broke. */
static int send_rest(const Order *order, int i) {
    Connection *c = &connections[i];
    while (c->sent < order->size) {
        long n = send(c->socket, c->message + c->sent, (int)(order->size - c->sent), 0);
        if (n < 0) {
            if (!BUSY) return fail("send");
            want_write(i, 1);
            return 0;
        }
        c->sent += (size_t)n;
    }
    want_write(i, 0);
    return 0;
}

static int begin_message(const Order *order, int i) {
    Connection *c = &connections[i];
    c->sent = c->received = 0;
    c->number++;
    if (!order->answer_size && order->size >= 8) memcpy(c->message, &c->number, 8);
    c->started = now_ns();
    return send_rest(order, i);
}

/* Receives one answer, or the part that is there: 1 when it is complete, 0 when not yet, -1 when it is wrong. */
static int receive_answer(const Order *order, int i) {
    Connection *c = &connections[i];
    size_t whole = order->answer_size ? order->answer_size : order->size;
    while (c->received < whole) {
        size_t room = whole - c->received < CHUNK ? whole - c->received : CHUNK;
        long n = recv(c->socket, scratch, (int)room, 0);
        if (n < 0) return BUSY ? 0 : fail("recv");
        if (n == 0) return fail("the server closed a connection");
        if (!order->answer_size && memcmp(scratch, c->message + c->received, (size_t)n)) return fail("wrong bytes came back");
        c->received += (size_t)n;
    }
    return 1;
}

static int open_one(const Order *order, int i) {
    Connection *c = &connections[i];
    c->socket = connect_to(order->host, order->port, strcmp(order->verb, "udp") ? SOCK_STREAM : SOCK_DGRAM);
    if (c->socket == INVALID_SOCKET) return fail("connect");
    set_nonblocking(c->socket);
    c->wants_write = 0;
    return 0;
}

static void make_message(const Order *order, int i) {
    Connection *c = &connections[i];
    c->message = malloc(order->size + 1);
    if (order->answer_size) memcpy(c->message, order->what, order->size);
    else for (size_t k = 0; k < order->size; k++) c->message[k] = (char)(k * 31 + (size_t)i);
}

/* -- the orders ------------------------------------------------------------------------------------------------ */

/* What one readiness of connection i means for a closed loop of messages. */
static int turn_messages(const Order *order, int i, int counts) {
    Connection *c = &connections[i];
    if (c->sent < order->size && send_rest(order, i)) return -1;
    int done = receive_answer(order, i);
    if (done <= 0) return done;
    if (counts) count_one(now_ns() - c->started);
    bytes += order->size;
    if (c->number == 1) silent--;
    if (!strcmp(order->verb, "churn")) {
        closesocket(c->socket);
        if (open_one(order, i)) return -1;
        watch(i, 0, 1);
    }
    return begin_message(order, i);
}

static int turn_push(const Order *order, int i) {
    Connection *c = &connections[i];
    long n = send(c->socket, c->message, (int)order->size, 0);
    if (n < 0) return BUSY ? 0 : fail("send");
    bytes += (uint64_t)n;
    return 0;
}

static int turn_pull(int i) {
    Connection *c = &connections[i];
    long n = recv(c->socket, scratch, CHUNK, 0);
    if (n < 0) return BUSY ? 0 : fail("recv");
    if (n == 0) return fail("the server closed a connection");
    if ((unsigned char)scratch[0] != c->received % 256 || (unsigned char)scratch[n - 1] != (c->received + (size_t)n - 1) % 256)
        return fail("wrong bytes came");
    c->received += (size_t)n;
    bytes += (uint64_t)n;
    return 0;
}

static int turn(const Order *order, int i, int counts) {
    if (!strcmp(order->verb, "push")) return turn_push(order, i);
    if (!strcmp(order->verb, "pull")) return turn_pull(i);
    return turn_messages(order, i, counts);
}

static int open_all(const Order *order) {
    watch_begin(order->connections);
    silent = strcmp(order->verb, "push") && strcmp(order->verb, "pull") ? order->connections : 0;
    for (int i = 0; i < order->connections; i++) {
        memset(&connections[i], 0, sizeof connections[i]);
        if (open_one(order, i)) return -1;
        held = i + 1;
        make_message(order, i);
        watch(i, 0, 1);
        if (!strcmp(order->verb, "push")) want_write(i, 1);
        else if (strcmp(order->verb, "pull") && begin_message(order, i)) return -1;
    }
    return 0;
}

static void close_all(void) {
    for (int i = 0; i < held; i++) {
        closesocket(connections[i].socket);
        free(connections[i].message);
    }
    held = 0;
}

static double drive(const Order *order, SOCKET control) {
    uint64_t start = now_ns(), begin = start + (uint64_t)(order->warm * 1e9), end = 0, now = start;
    counted = bytes = slowest = 0;
    memset(histogram, 0, sizeof histogram);
    while (!end || now < end) {
        int count = watch_wait(100);
        for (int k = 0; k < count; k++)
            if (turn(order, ready[k], end != 0)) return 0;
        now = now_ns();
        if (!end && now > begin + 60 * 1000000000ull) return fail("not every connection was answered");
        /* Not before the server has accepted all: it is messages that count. */
        if (!end && now >= begin && !silent) {
            begin = now;
            end = now + (uint64_t)(order->seconds * 1e9);
            bytes = 0;
            send(control, "{\"begin\": 1}\n", 13, 0);
        }
    }
    return (double)(now - begin) / 1e9;
}

/* Asks once, on a connection of its own, how long the whole answer is. */
static int measure_answer(Order *order) {
    char path[256];
    size_t got = 0, whole = 0;
    static char head[8192];
    snprintf(path, sizeof path, "%s", order->what);
    order->size = (size_t)snprintf(order->what, sizeof order->what, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path);
    SOCKET s = connect_to(order->host, order->port, SOCK_STREAM);
    if (s == INVALID_SOCKET || send(s, order->what, (int)order->size, 0) < 0) return fail("connect");
    while (!whole && got < sizeof head - 1) {
        long n = recv(s, head + got, (int)(sizeof head - 1 - got), 0);
        if (n <= 0) break;
        got += (size_t)n;
        head[got] = 0;
        char *blank = strstr(head, "\r\n\r\n"), *length = strstr(head, "ontent-");
        while (length && (length[7] | 32) != 'l') length = strstr(length + 7, "ontent-");
        if (blank && length) whole = (size_t)(blank + 4 - head) + (size_t)atol(strchr(length, ':') + 1);
    }
    closesocket(s);
    if (!whole || strncmp(head, "HTTP/1.1 200", 12)) return fail("not an HTTP 200 with a Content-Length");
    order->answer_size = whole;
    return 0;
}

static void obey(Order *order, SOCKET control, char *answer, size_t room) {
    double seconds = 0;
    failure[0] = 0;
    if (!strcmp(order->verb, "http") ? measure_answer(order) : ((order->size = (size_t)atol(order->what)), 0)) goto failed;
    close_all();
    if (!strcmp(order->verb, "drop")) { snprintf(answer, room, "{}\n"); return; }
    if (order->connections > CONNECTIONS_MAX) { fail("too many connections"); goto failed; }
    if (!open_all(order)) seconds = strcmp(order->verb, "hold") ? drive(order, control) : 0;
    watch_end();
failed:
    if (failure[0]) { close_all(); snprintf(answer, room, "{\"error\": \"%s\"}\n", failure); return; }
    snprintf(answer, room,
             "{\"messages\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"p50_us\": %.1f, \"p90_us\": %.1f, "
             "\"p99_us\": %.1f, \"max_us\": %.1f}\n",
             (unsigned long long)counted, (unsigned long long)bytes, seconds, percentile(0.5), percentile(0.9),
             percentile(0.99), (double)slowest / 1e3);
}

static int read_order(SOCKET control, Order *order) {
    char line[512];
    size_t got = 0;
    while (got < sizeof line - 1) {
        if (recv(control, line + got, 1, 0) <= 0) return 0;
        if (line[got++] == '\n') break;
    }
    line[got] = 0;
    memset(order, 0, sizeof *order);
    return sscanf(line, "%15s %63s %d %d %200s %lf %lf", order->verb, order->host, &order->port, &order->connections,
                  order->what, &order->warm, &order->seconds) == 7;
}

int main(int argc, char **argv) {
    Order order;
    char answer[512];
#ifdef _WIN32
    WSADATA data;
    WSAStartup(MAKEWORD(2, 2), &data);
#else
    signal(SIGPIPE, SIG_IGN);
#endif
    connections = calloc(CONNECTIONS_MAX, sizeof *connections);
    SOCKET control = argc > 2 && connections ? connect_to(argv[1], atoi(argv[2]), SOCK_STREAM) : INVALID_SOCKET;
    if (control == INVALID_SOCKET) return 1;
    while (read_order(control, &order)) {
        obey(&order, control, answer, sizeof answer);
        if (send(control, answer, (int)strlen(answer), 0) < 0) break;
        if (strcmp(order.verb, "hold")) close_all();
    }
    return 0;
}
