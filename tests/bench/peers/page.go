// A plain Go server: RabbitMQ to Socket.IO rooms, with tokens checked. A window has a goroutine
// that reads, a goroutine that writes, and a bounded channel between the rooms and the writer.
// The parts of Engine.IO and Socket.IO that it speaks are those of a stock client with the
// transport `websocket`. All libraries have their defaults; acks are batched.
//
// Built from Debian's packages, in GOPATH mode; see tests/bench/go_peer.py.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt"
	"github.com/gorilla/websocket"
	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	prefetch     = 4000
	ackEach      = 100
	ackAfter     = 20 * time.Millisecond
	queuedMax    = 256
	pingInterval = 25 * time.Second
	pingTimeout  = 20 * time.Second
	writeTimeout = 10 * time.Second
	payloadMax   = 1_000_000
)

// A window is one connection. Its channel is closed by the reader, when it has left its room.
type window struct {
	connection *websocket.Conn
	queued     chan []byte
}

// rooms has the windows of each user.
type rooms struct {
	mutex  sync.RWMutex
	byUser map[string]map[*window]struct{}
}

func (r *rooms) join(user string, w *window) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	room := r.byUser[user]
	if room == nil {
		room = make(map[*window]struct{})
		r.byUser[user] = room
	}
	room[w] = struct{}{}
}

func (r *rooms) leave(user string, w *window) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	delete(r.byUser[user], w)
	if len(r.byUser[user]) == 0 {
		delete(r.byUser, user)
	}
	close(w.queued)
}

// emit queues a packet for the windows of a user. A window that does not read is closed.
func (r *rooms) emit(user string, packet []byte) {
	r.mutex.RLock()
	defer r.mutex.RUnlock()
	for w := range r.byUser[user] {
		select {
		case w.queued <- packet:
		default:
			w.connection.Close()
		}
	}
}

// --- windows

type server struct {
	rooms    rooms
	secret   []byte
	parser   *jwt.Parser
	upgrader websocket.Upgrader
	lastID   atomic.Uint64
}

func (s *server) newID() string {
	return strconv.FormatUint(s.lastID.Add(1), 36)
}

// user returns the user of a token.
func (s *server) user(token string) (string, error) {
	var claims jwt.RegisteredClaims
	_, err := s.parser.ParseWithClaims(token, &claims, func(*jwt.Token) (interface{}, error) {
		return s.secret, nil
	})
	if err == nil && claims.Subject == "" {
		err = errors.New("the token has no subject")
	}
	return claims.Subject, err
}

func (s *server) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	connection, err := s.upgrader.Upgrade(response, request, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer connection.Close()
	connection.SetReadLimit(payloadMax)
	open := fmt.Sprintf(
		`0{"sid":"%s","upgrades":[],"pingInterval":%d,"pingTimeout":%d,"maxPayload":%d}`,
		s.newID(), pingInterval.Milliseconds(), pingTimeout.Milliseconds(), payloadMax,
	)
	if write(connection, []byte(open)) != nil {
		return
	}
	user, err := s.admit(connection)
	if err != nil {
		refusal, _ := json.Marshal(map[string]string{"message": err.Error()})
		write(connection, append([]byte("44"), refusal...))
		return
	}
	if write(connection, []byte(`40{"sid":"`+s.newID()+`"}`)) != nil {
		return
	}
	w := &window{connection, make(chan []byte, queuedMax)}
	s.rooms.join(user, w)
	defer s.rooms.leave(user, w)
	go w.writeAll()
	w.readAll()
}

// admit reads the CONNECT packet and returns the user of its token.
func (s *server) admit(connection *websocket.Conn) (string, error) {
	connection.SetReadDeadline(time.Now().Add(pingInterval + pingTimeout))
	_, packet, err := connection.ReadMessage()
	if err != nil {
		return "", err
	}
	data := strings.TrimPrefix(string(packet), "40")
	if len(data) == len(packet) {
		return "", errors.New("expected a CONNECT packet")
	}
	var auth struct{ Token string }
	if err := json.Unmarshal([]byte(data), &auth); err != nil {
		return "", err
	}
	return s.user(auth.Token)
}

// readAll reads until the client leaves or answers no ping.
func (w *window) readAll() {
	for {
		w.connection.SetReadDeadline(time.Now().Add(pingInterval + pingTimeout))
		_, packet, err := w.connection.ReadMessage()
		if err != nil || string(packet) == "1" || string(packet) == "41" {
			return
		}
	}
}

// writeAll writes packets and pings until the window has left its room.
func (w *window) writeAll() {
	defer w.connection.Close()
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		var packet []byte
		select {
		case queued, isOpen := <-w.queued:
			if !isOpen {
				return
			}
			packet = queued
		case <-ticker.C:
			packet = []byte("2")
		}
		if write(w.connection, packet) != nil {
			return
		}
	}
}

func write(connection *websocket.Conn, packet []byte) error {
	connection.SetWriteDeadline(time.Now().Add(writeTimeout))
	return connection.WriteMessage(websocket.TextMessage, packet)
}

// --- RabbitMQ

// subscribe declares exchange and queue, and consumes the queue.
func subscribe(channel *amqp.Channel, exchange, queue string) (<-chan amqp.Delivery, error) {
	if err := channel.ExchangeDeclare(exchange, "topic", true, false, false, false, nil); err != nil {
		return nil, err
	}
	arguments := amqp.Table{"x-queue-type": "quorum"}
	if _, err := channel.QueueDeclare(queue, true, false, false, false, arguments); err != nil {
		return nil, err
	}
	if err := channel.QueueBind(queue, "#", exchange, false, nil); err != nil {
		return nil, err
	}
	if err := channel.Qos(prefetch, 0, false); err != nil {
		return nil, err
	}
	return channel.Consume(queue, "", false, false, false, false, nil)
}

// deliver emits each delivery to the room of its user, and acks a hundred at once, or fewer
// after 20 ms. It returns when the channel is closed.
func deliver(deliveries <-chan amqp.Delivery, rooms *rooms) error {
	var last amqp.Delivery
	unacked := 0
	var due <-chan time.Time
	for {
		select {
		case delivery, isOpen := <-deliveries:
			if !isOpen {
				return errors.New("the channel is closed")
			}
			event := []interface{}{"message", json.RawMessage(delivery.Body)}
			packet, err := json.Marshal(event)
			if err != nil {
				return err
			}
			rooms.emit(delivery.RoutingKey, append([]byte("42"), packet...))
			last = delivery
			unacked++
			if unacked == 1 {
				due = time.After(ackAfter)
			}
			if unacked < ackEach {
				continue
			}
		case <-due:
		}
		unacked, due = 0, nil
		if err := last.Ack(true); err != nil {
			return err
		}
	}
}

func main() {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		log.Fatal(err)
	}
	channel, err := connection.Channel()
	if err != nil {
		log.Fatal(err)
	}
	deliveries, err := subscribe(channel, os.Getenv("EXCHANGE"), os.Getenv("QUEUE"))
	if err != nil {
		log.Fatal(err)
	}
	s := &server{
		rooms:  rooms{byUser: make(map[string]map[*window]struct{})},
		secret: []byte(os.Getenv("JWT_SECRET")),
		parser: jwt.NewParser(jwt.WithValidMethods([]string{"HS256"})),
	}
	http.Handle("/socket.io/", s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %d\n", listener.Addr().(*net.TCPAddr).Port)
	go func() { log.Fatal(http.Serve(listener, nil)) }()
	log.Fatal(deliver(deliveries, &s.rooms))
}
