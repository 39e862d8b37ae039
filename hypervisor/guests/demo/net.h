/* What the layers of the network stack offer each other. Addresses are in host order. */
#pragma once
#include "kernel.h"

enum { ETHERNET = 14, IPV4 = 20, UDP = 8 };
enum { PROTOCOL_ICMP = 1, PROTOCOL_UDP = 17 };
#define BROADCAST 0xFFFFFFFFu

struct neighbour {
    uint32_t address;
    uint8_t mac[6];
    uint64_t until;
};

struct dhcp {
    enum { DHCP_OFF, DHCP_DISCOVER, DHCP_REQUEST, DHCP_BOUND, DHCP_RENEW } state;
    uint32_t transaction, offered, server, lease, tries;
    uint64_t since;
    struct timer timer;
};

struct station {
    struct nic *nic;
    uint32_t index, address, mask, gateway, name_server;
    bool fixed;
    uint16_t identifier;
    struct neighbour neighbours[8];
    struct dhcp dhcp;
};
extern struct station stations[NICS];

/* An IPv4 packet that came in. `source_mac` is where an answer goes. */
struct packet {
    struct station *station;
    const uint8_t *source_mac;
    uint32_t source, destination;
    const uint8_t *data;
    uint32_t length;
};

static inline uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }
static inline uint32_t get32(const uint8_t *at) { return (uint32_t)get16(at) << 16 | get16(at + 2); }
static inline void put16(uint8_t *at, uint32_t value) { at[0] = (uint8_t)(value >> 8), at[1] = (uint8_t)value; }
static inline void put32(uint8_t *at, uint32_t value) { put16(at, value >> 16), put16(at + 2, value & 0xFFFF); }

/* ip.c */
void ip_up(struct nic *nic);
void ip_down(struct nic *nic);
void ip_receive(struct nic *nic, const uint8_t *frame, uint32_t length, bool checked);
uint8_t *ip_begin(struct station *station);
void ip_send(struct station *station, const uint8_t *mac, uint32_t to, uint8_t protocol, uint32_t length);
void ip_configure(struct station *station, uint32_t address, uint32_t mask, uint32_t gateway);
uint16_t checksum(const uint8_t *data, uint32_t length, uint32_t sum);
bool neighbour_find(struct station *station, uint32_t address, uint8_t *mac);
struct station *station_for(uint32_t address);
void print_address(uint32_t address);

/* icmp.c */
void icmp_receive(struct packet *packet);
bool ping(struct station *station, uint32_t address, uint16_t sequence, uint64_t *nanoseconds);

/* udp.c */
void udp_receive(struct packet *packet, bool checked);
uint8_t *udp_begin(struct station *station);
void udp_send(struct station *station, const uint8_t *mac, uint32_t to, uint16_t from_port, uint16_t port,
              uint32_t length);

/* dhcp.c */
void dhcp_start(struct station *station);
void dhcp_stop(struct station *station);
void dhcp_receive(struct packet *packet, const uint8_t *data, uint32_t length);

/* settings.c: addresses that the toolstack gives */
void settings_start(void);
void settings_look(void);

/* metrics.c */
void metrics_start(void);
void metrics_resume(void);
void metrics_address(struct station *station);

/* shell.c, and the commands in commands_*.c */
struct command {
    const char *name, *usage;
    void (*run)(char *arguments);
};
extern const struct command disk_commands[], net_commands[], store_commands[], system_commands[];
void shell(void) __attribute__((noreturn));
void print_usage(const struct command *command);

/* power.c */
extern uint64_t resumes;
void power_start(void);
bool suspend(void);
void power_off(uint32_t reason) __attribute__((noreturn));
