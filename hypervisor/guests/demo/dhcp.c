/* An address by DHCP (RFC 2131): discover, request, renew at half of the lease; asked again for ever, ever slower. */
#include "net.h"

enum { SERVER = 67, CLIENT = 68, FIXED = 240, PACKET = 300, COOKIE = 0x63825363 };
enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6 };
enum {
    OPTION_MASK = 1, OPTION_ROUTER = 3, OPTION_DNS = 6, OPTION_NAME = 12, OPTION_ADDRESS = 50, OPTION_LEASE = 51,
    OPTION_TYPE = 53, OPTION_SERVER = 54, OPTION_WANTED = 55, OPTION_END = 255,
};

static uint8_t *put_option(uint8_t *at, uint8_t option, uint32_t value)
{
    at[0] = option;
    at[1] = 4;
    put32(at + 2, value);
    return at + 6;
}

static void send(struct station *station, uint8_t type)
{
    struct dhcp *dhcp = &station->dhcp;
    uint8_t *packet = udp_begin(station);
    if (!packet)
        return;
    memset(packet, 0, PACKET);
    put32(packet, 0x01010600);
    put32(packet + 4, dhcp->transaction);
    put16(packet + 8, (uint32_t)((now() - dhcp->since) / NANOSECONDS));
    put16(packet + 10, station->address ? 0 : 0x8000); /* answer to everybody while we have no address */
    put32(packet + 12, station->address);
    memcpy(packet + 28, station->nic->mac, 6);
    put32(packet + 236, COOKIE);
    uint8_t *at = packet + FIXED;
    *at++ = OPTION_TYPE, *at++ = 1, *at++ = type;
    if (dhcp->offered && !station->address)
        at = put_option(at, OPTION_ADDRESS, dhcp->offered);
    if (type == REQUEST && dhcp->server && !station->address)
        at = put_option(at, OPTION_SERVER, dhcp->server);
    *at++ = OPTION_WANTED, *at++ = 4;
    *at++ = OPTION_MASK, *at++ = OPTION_ROUTER, *at++ = OPTION_DNS, *at++ = OPTION_LEASE;
    *at++ = OPTION_NAME, at[0] = (uint8_t)format((char *)at + 1, 24, "demo-%u", domid), at += at[0] + 1;
    *at = OPTION_END;
    udp_send(station, NULL, BROADCAST, CLIENT, SERVER, PACKET);
}

/* Sends what the state asks for, and waits for the answer: 1, 2, 4 … 64 seconds. */
static void ask(struct station *station)
{
    struct dhcp *dhcp = &station->dhcp;
    uint32_t shift = dhcp->tries < 6 ? dhcp->tries : 6;
    dhcp->tries++;
    dhcp->timer.when = now() + (NANOSECONDS << shift);
    send(station, dhcp->state == DHCP_DISCOVER ? DISCOVER : REQUEST);
}

static void discover(struct station *station)
{
    struct dhcp *dhcp = &station->dhcp;
    dhcp->state = DHCP_DISCOVER;
    dhcp->tries = 0;
    dhcp->server = 0;
    dhcp->since = now();
    dhcp->transaction = (uint32_t)now() * 2654435761u ^ get32(station->nic->mac + 2);
    ask(station);
}

static void due(void *argument)
{
    struct station *station = argument;
    struct dhcp *dhcp = &station->dhcp;
    if (dhcp->state == DHCP_BOUND) {
        dhcp->state = DHCP_RENEW;
        dhcp->tries = 0;
        dhcp->transaction++;
    } else if (dhcp->state == DHCP_RENEW && dhcp->tries > 3) {
        ip_configure(station, 0, 0, 0);
        discover(station);
        return;
    } else if (dhcp->state == DHCP_REQUEST && dhcp->tries > 3) {
        discover(station);
        return;
    }
    ask(station);
}

/* Begins anew; an address that we had is asked for again, and kept until somebody says no. */
void dhcp_start(struct station *station)
{
    static bool added[NICS];
    struct dhcp *dhcp = &station->dhcp;
    dhcp->timer.due = due;
    dhcp->timer.argument = station;
    if (!added[station->index])
        timer_add(&dhcp->timer);
    added[station->index] = true;
    station->fixed = false;
    if (station->address)
        dhcp->offered = station->address;
    station->address = 0;
    discover(station);
}

void dhcp_stop(struct station *station)
{
    station->dhcp.timer.when = 0;
    station->dhcp.state = DHCP_OFF;
}

/* Returns a number among the options, or 0. */
static uint32_t option(const uint8_t *data, uint32_t length, uint8_t wanted)
{
    for (uint32_t at = FIXED; at + 1 < length && data[at] != OPTION_END;) {
        if (!data[at]) {
            at++;
            continue;
        }
        uint32_t size = data[at + 1];
        if (at + 2 + size > length)
            return 0;
        if (data[at] == wanted)
            return size >= 4 ? get32(data + at + 2) : size ? data[at + 2] : 0;
        at += 2 + size;
    }
    return 0;
}

static void bind(struct station *station, const uint8_t *data, uint32_t length)
{
    struct dhcp *dhcp = &station->dhcp;
    uint32_t address = get32(data + 16), lease = option(data, length, OPTION_LEASE);
    uint32_t mask = option(data, length, OPTION_MASK);
    dhcp->state = DHCP_BOUND;
    dhcp->lease = lease ? lease : 3600;
    dhcp->timer.when = now() + dhcp->lease / 2 * NANOSECONDS + NANOSECONDS;
    station->name_server = option(data, length, OPTION_DNS);
    ip_configure(station, address, mask ? mask : 0xFFFFFF00, option(data, length, OPTION_ROUTER));
}

void dhcp_receive(struct packet *packet, const uint8_t *data, uint32_t length)
{
    struct station *station = packet->station;
    struct dhcp *dhcp = &station->dhcp;
    if (length < FIXED || data[0] != 2 || get32(data + 4) != dhcp->transaction || get32(data + 236) != COOKIE ||
        memcmp(data + 28, station->nic->mac, 6))
        return;
    uint32_t type = option(data, length, OPTION_TYPE);
    if (dhcp->state == DHCP_DISCOVER && type == OFFER && get32(data + 16)) {
        dhcp->state = DHCP_REQUEST;
        dhcp->tries = 0;
        dhcp->offered = get32(data + 16);
        dhcp->server = option(data, length, OPTION_SERVER);
        ask(station);
    } else if ((dhcp->state == DHCP_REQUEST || dhcp->state == DHCP_RENEW) && type == ACK) {
        bind(station, data, length);
    } else if ((dhcp->state == DHCP_REQUEST || dhcp->state == DHCP_RENEW) && type == NAK) {
        dhcp->offered = 0;
        ip_configure(station, 0, 0, 0);
        discover(station);
    }
}
