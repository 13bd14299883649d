{{/* What everything of the release is named after. */}}
{{- define "penstock.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change, by which pods are selected. Takes (root, component). */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: penstock
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "penstock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* "true" where the release has that log, "" where it has not. */}}
{{- define "penstock.hasRedis" -}}
{{- with .Values.eventLog.redis -}}
{{- if or $.Values.redis.install .url .existingSecret -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "penstock.hasKafka" -}}
{{- with .Values.eventLog.kafka -}}
{{- if or .servers .existingSecret -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* redis or kafka: the one that is said, or the only one that there is. Stops the installation with what to do. */}}
{{- define "penstock.logKind" -}}
{{- $kind := .Values.eventLog.kind -}}
{{- $redis := include "penstock.hasRedis" . -}}
{{- $kafka := include "penstock.hasKafka" . -}}
{{- with .Values.eventLog.redis -}}
{{- if and .url .existingSecret -}}
{{- fail "\n\neventLog.redis.url and eventLog.redis.existingSecret are both set. Leave one of them out.\n" -}}
{{- end -}}
{{- if and $.Values.redis.install (or .url .existingSecret) -}}
{{- fail "\n\nredis.install=true brings a Redis, and eventLog.redis names another one. Leave one of them out.\n" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.eventLog.kafka.servers .Values.eventLog.kafka.existingSecret -}}
{{- fail "\n\neventLog.kafka.servers and eventLog.kafka.existingSecret are both set. Leave one of them out.\n" -}}
{{- end -}}
{{- if and (eq $kind "redis") (not $redis) -}}
{{- fail "\n\neventLog.kind is redis, and it is not said where that is. Set eventLog.redis.url, or eventLog.redis.existingSecret (a Secret with the URL under the key eventLog.redis.secretKey), or redis.install=true.\n" -}}
{{- else if and (eq $kind "kafka") (not $kafka) -}}
{{- fail "\n\neventLog.kind is kafka, and it is not said where that is. Set eventLog.kafka.servers (HOST:PORT, with commas between several), or eventLog.kafka.existingSecret (a Secret with that under the key eventLog.kafka.secretKey).\n" -}}
{{- else if $kind -}}
{{- $kind -}}
{{- else if and $redis $kafka -}}
{{- fail "\n\nThere is a Redis and a Kafka, and it is not said which of them keeps the events of Brokers that ask for no class. Set eventLog.kind to redis or kafka.\n" -}}
{{- else if $redis -}}
redis
{{- else if $kafka -}}
kafka
{{- else -}}
{{- fail "\n\nNothing is named that keeps events until they are delivered. One of:\n  --set redis.install=true                                      (one node, for trying out)\n  --set eventLog.redis.url=redis://HOST:6379/0\n  --set eventLog.redis.existingSecret=NAME\n  --set eventLog.kafka.servers=HOST:9092\n  --set eventLog.kafka.existingSecret=NAME\n" -}}
{{- end -}}
{{- end -}}

{{- define "penstock.redisURL" -}}
{{- if .Values.redis.install -}}
redis://{{ include "penstock.fullname" . }}-redis.{{ .Release.Namespace }}.svc:6379/0
{{- else -}}
{{ .Values.eventLog.redis.url }}
{{- end -}}
{{- end -}}

{{/* A quantity of memory (1Gi, 500M, 1048576) in bytes. Stops the installation where it is none. */}}
{{- define "penstock.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := kindIs "string" . | ternary (toString .) (toString (int64 .)) -}}
{{- if not (regexMatch "^[0-9]+(k|M|G|Ki|Mi|Gi|Ti)?$" $text) -}}
{{- fail (printf "\n\n%s is not a number of bytes. Write it as 512Mi or 2Gi.\n" $text) -}}
{{- end -}}
{{- mul (regexFind "^[0-9]+" $text | int64) (get $units (regexFind "[A-Za-z]*$" $text) | int64) -}}
{{- end -}}

{{/* The installed Redis' limit of memory in bytes; "" where it has none. */}}
{{- define "penstock.redisLimit" -}}
{{- with dig "limits" "memory" "" .Values.redis.resources -}}
{{- include "penstock.bytes" . -}}
{{- end -}}
{{- end -}}

{{/*
What Redis may fill of its limit: the rest is for what it copies while it writes its file anew, and for connections.
*/}}
{{- define "penstock.redisMaxMemory" -}}
{{- with include "penstock.redisLimit" . -}}
{{- div (mul (int64 .) 60) 100 -}}
{{- end -}}
{{- end -}}

{{/* What roles that read or write events are told of the logs: arguments, and variables where they may hold a password. */}}
{{- define "penstock.logArguments" -}}
- --broker-log={{ include "penstock.logKind" . }}
- --log-name={{ .Values.eventLog.name | default (printf "%s-%s" .Release.Namespace .Release.Name) }}
{{- with .Values.eventLog.retention }}
- --log-max-age={{ int64 .maxAgeSeconds }}
- --log-undelivered-age={{ int64 .undeliveredAgeSeconds }}
{{- /* A small event takes about twice its size in Redis, and as much again may be the record of deliveries. */}}
{{- $limit := "" }}
{{- if $.Values.redis.install }}
{{- $limit = include "penstock.redisLimit" $ }}
{{- end }}
{{- $max := .maxBytes | default (empty $limit | ternary "1Gi" (div (int64 $limit) 8 | toString)) }}
{{- $full := .fullBytes | default (empty $limit | ternary "8Gi" (div (int64 $limit) 4 | toString)) }}
- --log-max-bytes={{ include "penstock.bytes" $max }}
- --log-full-bytes={{ include "penstock.bytes" $full }}
{{- end }}
{{- end -}}

{{- define "penstock.logEnvironment" -}}
{{- $own := printf "%s-event-log" (include "penstock.fullname" .) -}}
{{- if include "penstock.hasRedis" . }}
- name: PENSTOCK_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.eventLog.redis.existingSecret | default $own }}
      key: {{ ternary .Values.eventLog.redis.secretKey "redis-url" (not (empty .Values.eventLog.redis.existingSecret)) }}
{{- end }}
{{- if include "penstock.hasKafka" . }}
- name: PENSTOCK_KAFKA_BOOTSTRAP_SERVERS
  valueFrom:
    secretKeyRef:
      name: {{ .Values.eventLog.kafka.existingSecret | default $own }}
      key: {{ ternary .Values.eventLog.kafka.secretKey "kafka-servers" (not (empty .Values.eventLog.kafka.existingSecret)) }}
{{- end }}
{{- end -}}

{{/* The Secret with the webhooks' certificate. */}}
{{- define "penstock.webhookSecret" -}}
{{- .Values.webhook.existingSecret | default (printf "%s-webhook-tls" (include "penstock.fullname" .)) -}}
{{- end -}}

{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
A role's Deployment. Takes root, component (its name), role (of `penstock cluster`), values (its part of the values),
port (0 for none), log (whether it reads or writes events), arguments, ports, volumes and mounts (YAML, or ""), strict
(whether one that is stalled has to end soon).
*/}}
{{- define "penstock.deployment" -}}
{{- $notice := .values.noticeSeconds | default 0 | int -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
spec:
  {{- if not (dig "autoscaling" "enabled" false .values) }}
  replicas: {{ .values.replicas }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "penstock.selector" . | nindent 6 }}
  strategy:
    {{- if .recreate }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
    {{- end }}
  template:
    metadata:
      labels:
        {{- include "penstock.labels" . | nindent 8 }}
      annotations:
        {{- if .root.Values.scrapeAnnotations }}
        prometheus.io/scrape: "true"
        prometheus.io/port: "9090"
        {{- end }}
        {{- if .log }}
        # A new address of the log makes new pods.
        checksum/event-log: {{ printf "%s %s" (include "penstock.redisURL" .root) .root.Values.eventLog.kafka.servers | sha256sum }}
        {{- end }}
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "penstock.fullname" .root }}-{{ .component }}
      automountServiceAccountToken: true
      terminationGracePeriodSeconds: {{ add $notice .values.drainSeconds 10 }}
      securityContext:
        {{- include "penstock.podSecurity" . | nindent 8 }}
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "penstock.image" .root }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [penstock, cluster, {{ .role }}]
          args:
            - --notice={{ $notice }}
            - --drain={{ .values.drainSeconds }}
            - --log-level={{ .root.Values.logLevel }}
            - --control-service={{ include "penstock.fullname" .root }}-control
            - --gateway-service={{ include "penstock.fullname" .root }}-gateway
            - --ingress-service={{ include "penstock.fullname" .root }}-broker-ingress
            {{- if .log }}
            {{- include "penstock.logArguments" .root | nindent 12 }}
            {{- end }}
            {{- with .arguments }}
            {{- . | nindent 12 }}
            {{- end }}
          env:
            - name: PENSTOCK_POD
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            - name: PENSTOCK_NAMESPACE
              valueFrom:
                fieldRef:
                  fieldPath: metadata.namespace
            {{- if .log }}
            {{- with include "penstock.logEnvironment" .root }}
            {{- . | trim | nindent 12 }}
            {{- end }}
            {{- end }}
            {{- with .variables }}
            {{- . | nindent 12 }}
            {{- end }}
          ports:
            {{- if .port }}
            - name: http
              containerPort: {{ .port }}
            {{- end }}
            {{- with .ports }}
            {{- . | nindent 12 }}
            {{- end }}
            - name: admin
              containerPort: 9090
          startupProbe:
            httpGet:
              path: /healthz
              port: admin
            periodSeconds: 1
            failureThreshold: 60
          readinessProbe:
            httpGet:
              path: /readyz
              port: admin
            periodSeconds: 2
            timeoutSeconds: 3
            failureThreshold: 2
          livenessProbe:
            httpGet:
              path: /healthz
              port: admin
            {{- if .strict }}
            # Others take over what a gateway held that is silent for `serving.gateways.SILENT_REST_S`: by then a stalled
            # one has been killed. It could not finish anything in a grace period.
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 3
            terminationGracePeriodSeconds: 1
            {{- else }}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
            {{- end }}
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            {{- include "penstock.containerSecurity" . | nindent 12 }}
          {{- with .mounts }}
          volumeMounts:
            {{- . | nindent 12 }}
          {{- end }}
      {{- with .volumes }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with .values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity:
        {{- if .values.affinity }}
        {{- toYaml .values.affinity | nindent 8 }}
        {{- else }}
        # Replicas on different nodes where there are several.
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels:
                    {{- include "penstock.selector" . | nindent 20 }}
        {{- end }}
{{- end -}}

{{/* What every role has beside its Deployment. Takes root, component, values. */}}
{{- define "penstock.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
  {{- with .root.Values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
# Pods that need the token mount it themselves.
automountServiceAccountToken: false
{{- end -}}

{{- define "penstock.disruptionBudget" -}}
{{- if or (gt (int .values.replicas) 1) (dig "autoscaling" "enabled" false .values) -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
spec:
  minAvailable: 1
  selector:
    matchLabels:
      {{- include "penstock.selector" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{- define "penstock.autoscaling" -}}
{{- if .values.autoscaling.enabled -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "penstock.fullname" .root }}-{{ .component }}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .values.autoscaling.targetCPUUtilizationPercentage }}
{{- end -}}
{{- end -}}

{{/* Rights in the whole cluster. Takes root, component, rules (YAML). */}}
{{- define "penstock.clusterRole" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .root.Release.Namespace }}-{{ include "penstock.fullname" .root }}-{{ .component }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .root.Release.Namespace }}-{{ include "penstock.fullname" .root }}-{{ .component }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .root.Release.Namespace }}-{{ include "penstock.fullname" .root }}-{{ .component }}
subjects:
  - kind: ServiceAccount
    name: {{ include "penstock.fullname" .root }}-{{ .component }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* Rights in the release's namespace. Takes root, component, rules (YAML). */}}
{{- define "penstock.role" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
subjects:
  - kind: ServiceAccount
    name: {{ include "penstock.fullname" .root }}-{{ .component }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* A Service in front of a role. Takes root, component, port, also (another port), type, annotations,
leader (whether only to that one). */}}
{{- define "penstock.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "penstock.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
    # By this, on the EndpointSlices that Kubernetes makes of it, the platform's pods find each other.
    penstock.dev/component: {{ .component }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .type | default "ClusterIP" }}
  selector:
    {{- include "penstock.selector" . | nindent 4 }}
    {{- if .leader }}
    penstock.dev/leader: "true"
    {{- end }}
  ports:
    - name: http
      port: {{ .port }}
      targetPort: http
    {{- with .also }}
    - name: also
      port: {{ . }}
      targetPort: http
    {{- end }}
{{- end -}}
