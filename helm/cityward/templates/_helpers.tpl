{{- define "cityward.name" -}}
{{- printf "%s-%s" .Release.Name .Values.part | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "cityward.selector" -}}
app.kubernetes.io/name: cityward
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.part }}
{{- end -}}

{{- define "cityward.labels" -}}
{{ include "cityward.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cityward.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/*
The settings file: what the person wrote, and what the chart knows better. Helm reads every number
as one with a fraction; a whole one is written whole again, since days and ports are.
*/}}
{{- define "cityward.settings" -}}
{{- $console := dict "host" "0.0.0.0" "port" (int .Values.console.port) -}}
{{- if .Values.console.tlsSecret -}}
{{- $_ := set $console "tls_cert" "/etc/cityward/tls/tls.crt" -}}
{{- $_ := set $console "tls_key" "/etc/cityward/tls/tls.key" -}}
{{- else -}}
{{- $_ := set $console "secure_cookie" true -}}
{{- end -}}
{{- $own := dict "state_dir" "/var/lib/cityward" "console" $console -}}
{{- if eq .Values.part "hub" -}}
{{- $_ := set $own "hub" (dict "listen" (printf "0.0.0.0:%d" (int .Values.exchange.port))) -}}
{{- end -}}
{{- $text := mergeOverwrite (deepCopy .Values.settings) $own | toToml -}}
{{- regexReplaceAll "(?m)= (-?[0-9]+)\\.0$" $text "= ${1}" -}}
{{- end -}}

{{- define "cityward.mounts" -}}
- {name: settings, mountPath: /etc/cityward/cityward.toml, subPath: cityward.toml, readOnly: true}
- {name: state, mountPath: /var/lib/cityward}
- {name: tmp, mountPath: /tmp}
{{- if .Values.files }}
- {name: files, mountPath: /etc/cityward/files, readOnly: true}
{{- end }}
{{- if .Values.console.tlsSecret }}
- {name: tls, mountPath: /etc/cityward/tls, readOnly: true}
{{- end }}
{{- range .Values.secretFiles }}
- {name: {{ printf "secret-%s" . }}, mountPath: {{ printf "/etc/cityward/secrets/%s" . }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "cityward.common" -}}
image: {{ include "cityward.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - {name: CITYWARD_CONFIG, value: /etc/cityward/cityward.toml}
  - {name: HOME, value: /tmp}
{{- if .Values.secretVariables }}
envFrom:
{{- range .Values.secretVariables }}
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}
volumeMounts:
  {{- include "cityward.mounts" . | nindent 2 }}
{{- end -}}

{{- define "cityward.contained" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The console answers: the process lives, its state can be read. */}}
{{- define "cityward.consoleProbes" -}}
{{- $get := dict "path" "/sign-in" "port" "console" "scheme" (ternary "HTTPS" "HTTP" (ne .Values.console.tlsSecret "")) -}}
startupProbe:
  httpGet: {{ toJson $get }}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {{ toJson $get }}
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet: {{ toJson $get }}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* The path writes its states every second; one that has not for two minutes hangs. */}}
{{- define "cityward.pathProbes" -}}
{{- $alive := list "sh" "-c" "test -n \"$(find /var/lib/cityward -maxdepth 1 -name 'node.db*' -mmin -2)\"" -}}
startupProbe:
  exec: {command: {{ toJson $alive }}}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  exec: {command: {{ toJson $alive }}}
  periodSeconds: 60
  failureThreshold: 3
{{- end -}}

{{/* Workers look at the journal every five seconds, if Redis lets them; who has not for long hangs. */}}
{{- define "cityward.workerProbes" -}}
{{- $looked := list "sh" "-c" "test -n \"$(find /var/lib/cityward -maxdepth 1 -name worker.looked -mmin -10)\"" -}}
startupProbe:
  exec: {command: {{ toJson $looked }}}
  periodSeconds: 5
  failureThreshold: 120
livenessProbe:
  exec: {command: {{ toJson $looked }}}
  periodSeconds: 60
  failureThreshold: 3
{{- end -}}
